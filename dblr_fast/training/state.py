"""The state of a run on disk: one file, complete or not there, that runs no code when it is read."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import torch

from ..errors import Refusal
from ..replace import replacing
from .config import TrainConfig
from .configuration import first_difference

NAME = "checkpoint.pt"
FORMAT = 1


def random_state() -> dict:
    """The state of all random number generators of this process."""
    kind, keys, *rest = np.random.get_state()
    return {"torch": torch.get_rng_state(), "python": random.getstate(),
            "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None}


def set_random_state(state: dict) -> None:
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def save(folder: Path, state: dict) -> None:
    """Writes the checkpoint of a run: beside the old one, flushed to the disk, then in its place, so that a
    crash at any moment leaves one that is complete. Raises OSError where it cannot be written."""
    with replacing(folder / NAME) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)
    if os.name == "posix":  # the change of name too must reach the disk
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def load(folder: str | os.PathLike) -> dict:
    """The checkpoint of a run, tensors on the CPU. Raises Refusal where there is none or it cannot be read."""
    path = Path(folder) / NAME
    if not path.is_file():
        raise Refusal(f"there is no checkpoint in {folder}; give the folder of a run")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes of torch's reader
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise Refusal(f"checkpoint {path} cannot be read ({reason[0][:150]})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise Refusal(f"{path} is no checkpoint of this version of dblr_fast; use the version that wrote it")
    return state


def require_same(state: dict, config: TrainConfig, folder: Path) -> None:
    """Raises Refusal where the checkpoint was written under settings that make another training."""
    found = first_difference(state["configuration"], config)
    if found:
        name, before, now = found
        raise Refusal(f"the checkpoint in {folder} was written with {name} {_text(before)} and the configuration says "
                      f"{_text(now)}; set it back, or start another run in another folder")


def remove_leftovers(folder: Path) -> None:
    """Removes what writes that were cut off (kill -9, a power cut) left beside the checkpoint."""
    for path in folder.glob(f".{Path(NAME).stem}.*{Path(NAME).suffix}"):
        path.unlink(missing_ok=True)


def _text(value) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value not in ("", None, []) else "nothing"
