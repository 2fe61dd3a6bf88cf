"""What the package raises when it cannot do what was asked. Each message is one sentence for the user."""

from __future__ import annotations


class Refusal(ValueError):
    """The request itself cannot be met: a missing file, a wrong option, a format that is not handled."""


class RunError(RuntimeError):
    """The request was fine but could not be carried out: a full disk, an encoder that failed."""
