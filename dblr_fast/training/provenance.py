"""What a run was made with: commit and versions, kept beside its results."""

from __future__ import annotations

import platform
import subprocess
import time
from pathlib import Path

import torch

from .. import __version__
from .ranks import Ranks

_PACKAGE = Path(__file__).resolve().parent.parent


def commit() -> str:
    """The commit of the checkout that this package is run from, "+changes" where files differ from it; "unknown"
    for an installed package."""
    def git(*arguments):
        return subprocess.run(["git", "-C", str(_PACKAGE), *arguments], capture_output=True, text=True, timeout=20)

    try:
        # A package installed below someone else's checkout is not theirs.
        if git("ls-files", "--error-unmatch", "__init__.py").returncode:
            return "unknown"
        head = git("rev-parse", "HEAD").stdout.strip()
        return head + ("+changes" if git("status", "--porcelain", "--untracked-files=no").stdout.strip() else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def versions(step: int, ranks: Ranks) -> str:
    """One entry of versions.yaml: when, from which step, with what the run was started or resumed."""
    device = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else platform.processor() or "CPU"
    entry = {"started": time.strftime("%Y-%m-%d %H:%M:%S %z"), "step": step, "commit": commit(),
             "dblr_fast": __version__, "torch": torch.__version__, "python": platform.python_version(),
             "system": platform.system(), "device": device, "processes": ranks.world,
             "threads": torch.get_num_threads()}
    lines = [f"{key}: {value!r}" if isinstance(value, str) else f"{key}: {value}" for key, value in entry.items()]
    return "- " + "\n  ".join(lines) + "\n"
