"""From a model and the caller's choices to a function that restores the middle frame of a window."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from .checkpoint import load_model
from .colour import WEIGHTS
from .engine import Engine
from .errors import Refusal


class Restorer:
    """Runs a model over windows of luma frames.

    model: a name or path (checkpoint.load_model), a DBLRNet, or an Engine that is ready to run (then the
        other choices are the engine's).
    backend, precision, tile: as in Engine.
    device: where to run; None or "auto" for a GPU when there is one, unless backend is "cpu", and for a
        module the device that it is on.

    Luma goes in and comes out with 0 for black and 1 for white. Weights that were trained on another scale
    or another matrix say so in their metadata (luma_range, luma_matrix), and this class honours it.
    """

    def __init__(self, model="default", backend: str | None = None, precision: str = "auto",
                 tile: str | int = "auto", device: torch.device | str | None = None):
        if isinstance(device, str):
            device = None if device == "auto" else _named(device)
        if isinstance(model, (str, os.PathLike)):
            device = default_device(backend) if device is None else device
            model = load_model(model, device)
        if isinstance(model, nn.Module):
            model = Engine(model, backend, precision, tile, device)
        self.engine = model
        network = self.engine.model
        self.frames = network.frames
        self.device = torch.device(self.engine.device)
        metadata = getattr(network, "metadata", {})
        self.weights = WEIGHTS[metadata.get("luma_matrix", "bt601")]
        limited = metadata.get("luma_range", "full") == "limited"
        self._black, self._span = (16 / 255, 219 / 255) if limited else (0.0, 1.0)

    @property
    def radius(self) -> int:
        """Frames of context on each side."""
        return self.frames // 2

    def __call__(self, window: list[Tensor]) -> Tensor:
        """`frames` float32 tensors (H, W) on `device` -> the restored middle one, (H, W), not clamped."""
        batch = torch.stack(window)[None]
        if (self._black, self._span) == (0.0, 1.0):
            return self.engine(batch)[0, 0]
        return (self.engine(batch * self._span + self._black)[0, 0] - self._black) / self._span


def default_device(backend: str | None = None) -> torch.device:
    """A GPU when there is one and the backend is not the CPU's, else the CPU."""
    gpu = backend != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")


def _named(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise Refusal(f"there is no device {name!r}; cpu and cuda are usual") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise Refusal(f"device {name!r} was asked for, but torch finds no GPU here; 'auto' takes the CPU")
    return device
