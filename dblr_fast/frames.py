"""deblur(): frames that are already in memory."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from .colour import RANGES, black_and_span, check_range, luma_of, quantise
from .errors import Refusal
from .restore import Restorer
from .window import windows

_BITS = {torch.uint8: 8, torch.uint16: 16}


def deblur(frames, *, model="default", backend: str | None = None, precision: str = "auto",
           tile: str | int = "auto", range: str = "full"):
    """Restores consecutive frames of one clip.

    frames: numpy array or torch tensor, (T, H, W) luma or (T, H, W, 3) R, G, B, of uint8, uint16 or floats in
        [0, 1]; T >= 1, the first and the last frame stand for those before and after the clip.
    model: a name out of `models()`, a path, a DBLRNet, or an Engine.
    backend, precision, tile: as in Engine. A tensor is worked on where it lies; an array on the GPU when
        there is one.
    range: "full" (0 is black, 255 or 65535 or 1.0 is white) or "limited" (16 and 235 of 255, or that share of
        the scale).

    Returns frames of the same type, dtype, shape and device. Of colour frames the luma (BT.601, or what the
    weights were trained with) is restored and its difference added to R, G and B, which leaves Cb and Cr as
    they were (Section III-A of the paper); the result is rounded and clipped to what the dtype can hold,
    floats to [0, 1].

    Raises Refusal (a ValueError) or TypeError when the frames do not fit.
    """
    check_range(range, RANGES)
    clip = _checked(frames)
    if isinstance(model, (str, os.PathLike)):
        device = clip.device if isinstance(frames, Tensor) else None
        restorer = Restorer(model, backend, precision, tile, device)
    else:
        restorer = Restorer(model, backend, precision, tile)
    out = torch.empty_like(clip)
    with torch.no_grad():
        indexed = ((i, _luma(frame, restorer, range)) for i, frame in enumerate(clip))
        for window in windows(indexed, restorer.radius):
            index, luma = window[restorer.radius]
            restored = restorer([item[1] for item in window])
            out[index] = _replaced(clip[index], restored, restored - luma, range)
    return out if isinstance(frames, Tensor) else out.numpy()


def _checked(frames) -> Tensor:
    if isinstance(frames, Tensor):
        clip = frames.detach()
    else:
        import numpy

        if not isinstance(frames, numpy.ndarray):
            raise TypeError(f"frames must be a numpy array or a torch tensor, got {type(frames).__name__}")
        try:
            clip = torch.from_numpy(numpy.ascontiguousarray(frames))
        except TypeError:
            raise Refusal(f"frames must be uint8, uint16 or floats in [0, 1], got {frames.dtype}") from None
    if not (clip.dtype in _BITS or clip.is_floating_point()):
        raise Refusal(f"frames must be uint8, uint16 or floats in [0, 1], got {clip.dtype}")
    if clip.dim() not in (3, 4) or (clip.dim() == 4 and clip.shape[3] != 3):
        raise Refusal(f"frames must be (T, H, W) luma or (T, H, W, 3) R, G, B, got {tuple(clip.shape)}")
    if clip.numel() == 0:
        raise Refusal(f"frames must hold at least one frame of one pixel, got {tuple(clip.shape)}")
    return clip


def _scale(dtype, range) -> tuple[float, float]:
    """Black and span in the samples' own units."""
    if dtype in _BITS:
        return black_and_span(_BITS[dtype], range == "full")
    return (0.0, 1.0) if range == "full" else (16 / 255, 219 / 255)


def _luma(frame, restorer, range):
    black, span = _scale(frame.dtype, range)
    samples = frame.to(restorer.device).float()
    samples = (samples - black) / span
    return samples if frame.dim() == 2 else luma_of(samples, restorer.weights)


def _replaced(frame, restored, difference, range):
    """The frame with its luma replaced; colour frames get the luma's difference in each channel."""
    black, span = _scale(frame.dtype, range)
    if frame.dim() == 2:
        value = restored * span + black
    else:
        value = frame.to(difference.device).float() + (difference * span)[..., None]
    if frame.dtype in _BITS:
        return quantise(value, 2 ** _BITS[frame.dtype] - 1, frame.dtype).to(frame.device)
    return value.clamp_(0, 1).to(frame.device, frame.dtype)
