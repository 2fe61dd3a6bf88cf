"""Scores and pictures of a network on the validation windows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..colour import WEIGHTS, luma_of
from ..errors import Refusal
from ..evaluation import psnr, ssim
from .ranks import Ranks

# Means over the windows: PSNR in dB and SSIM of luma (BT.601) and of R, G, B, restored and as the input has them.
NAMES = tuple(f"{metric}_{colours}{of}" for of in ("", "_input") for colours in ("y", "rgb")
              for metric in ("psnr", "ssim"))
_CEILING = 100.0  # dB, for windows restored exactly
_SMALLEST = 11  # the side of SSIM's window


@torch.no_grad()
def validate(model, windows: Sequence[dict], ranks: Ranks, pictures: int = 0):
    """Scores of a network, in evaluation mode, on windows as `dblr_fast.data.validation_set` gives them.

    Processes share the windows; those shown as pictures are rank 0's. Frames are clamped and rounded to bytes,
    as in a file; the restored colours are the blurred ones with their luma exchanged and chroma (Cb, Cr) kept.
    Returns ({name: mean score}, the same in each process; [(name, blurred, restored, sharp)], each (3, H, W)
    uint8 on the CPU, in rank 0 alone). Raises Refusal for windows smaller than 11x11.
    """
    table = torch.zeros(len(windows), len(NAMES), dtype=torch.float64, device=ranks.device)
    shown = []
    for index in range(len(windows)):
        if ranks.rank != (0 if index < pictures else index % ranks.world):
            continue
        window = windows[index]
        blurred, before, sharp = (window[k].to(ranks.device) for k in ("blurred", "blurred_rgb", "sharp_rgb"))
        if min(sharp.shape[-2:]) < _SMALLEST:
            raise Refusal(f"validation windows must be at least {_SMALLEST}x{_SMALLEST} pixels; those of "
                          f"{window['name']} are {sharp.shape[2]}x{sharp.shape[1]}; set data.validation_size")
        dtype = model.conv1.weight.dtype
        luma = model(blurred[None].to(dtype))[0, 0].to(before.dtype)
        after = before + (luma - blurred[blurred.shape[0] // 2])
        after, before, sharp = (_bytes(picture) for picture in (after, before, sharp))
        table[index] = torch.tensor([*scores(after, sharp), *scores(before, sharp)], dtype=torch.float64)
        if index < pictures:
            shown.append((window["name"], *((255 * p).round().to(torch.uint8).cpu() for p in (before, after, sharp))))
    means = ranks.total(table).mean(0).tolist()
    return dict(zip(NAMES, means)), shown


def scores(restored: Tensor, sharp: Tensor) -> list[float]:
    """PSNR and SSIM of Y, then of R, G, B, of pictures (3, H, W) in [0, 1]; PSNR is 100 at most."""
    y = [luma_of(picture.movedim(0, -1), WEIGHTS["bt601"]) for picture in (restored, sharp)]
    flat = [picture.reshape(1, -1) for picture in (restored, sharp)]  # one error over all three colours
    return [min(float(psnr(*y)), _CEILING), float(ssim(*y)),
            min(float(psnr(*flat)), _CEILING), float(ssim(restored, sharp).mean())]


def _bytes(picture: Tensor) -> Tensor:
    return (picture.clamp(0, 1) * 255).round() / 255
