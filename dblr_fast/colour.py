"""Luma and code values: how samples of a picture become numbers for the network and back.

Luma is a weighted sum of gamma-coded R, G, B (ITU-R BT.601, BT.709 or BT.2020), on a scale where 0 is black
and 1 is white. Full-range code values run from 0 to 2^bits - 1, limited ("studio") ones from 16 to 235 times
2^(bits - 8), with room below black and above white that is kept (ITU-R BT.601-7, BT.2100-2 table 9).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import Refusal

# Weights of R, G, B by matrix, as checkpoints name it in "luma_matrix".
WEIGHTS = {
    "bt601": (0.299, 0.587, 0.114),
    "bt709": (0.2126, 0.7152, 0.0722),
    "bt2020": (0.2627, 0.6780, 0.0593),
}
RANGES = ("limited", "full")


def black_and_span(bits: int, full: bool) -> tuple[float, float]:
    """Code value of black, and how many code values lie between black and white."""
    if full:
        return 0.0, float(2**bits - 1)
    return 16.0 * 2 ** (bits - 8), 219.0 * 2 ** (bits - 8)


def quantise(value: Tensor, top: int, dtype: torch.dtype) -> Tensor:
    """Rounds code values to whole numbers within 0..top, all that the samples can hold; NaN becomes 0."""
    return torch.nan_to_num(value).round_().clamp_(0, top).to(dtype)


def luma_of(rgb: Tensor, weights: tuple[float, float, float]) -> Tensor:
    """(..., 3) R, G, B in float -> (...) luma on the same scale."""
    r, g, b = rgb.unbind(-1)
    return r * weights[0] + g * weights[1] + b * weights[2]


def check_range(value: str, choices: tuple[str, ...]) -> str:
    """The value itself. Raises Refusal when it is none of the choices."""
    if value not in choices:
        raise Refusal(f"range must be one of {', '.join(choices)}; got {value!r}")
    return value
