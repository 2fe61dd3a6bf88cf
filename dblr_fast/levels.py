"""The caller's choice of precision; what each level means is a table in README.md, "Precision"."""

from __future__ import annotations

from contextlib import contextmanager

LEVELS = ("exact", "fast", "half", "bf16")

_current = "exact"


def check(level: str) -> str:
    """The level itself. Raises ValueError when there is no such level."""
    if level not in LEVELS:
        raise ValueError(f"precision must be one of {', '.join(LEVELS)}; got {level!r}")
    return level


def current() -> str:
    """The level that float32 modules and ops run at; "exact" unless `precision` says otherwise."""
    return _current


@contextmanager
def precision(level: str):
    """Context in which float32 modules and ops run at a level: "exact", "fast", "half" or "bf16".

    A level that the backend at hand lacks raises ValueError with the reason when an op is called. Tensors
    in float16, bfloat16 or float64 are not affected. Holds for the whole process, as torch's flags do.
    """
    global _current
    before, _current = _current, check(level)
    try:
        yield
    finally:
        _current = before
