"""Camera response curves: from light to the values of a picture and back."""

from __future__ import annotations

import numpy as np

RESPONSES = ("gamma", "srgb", "linear", "s_curve")
_LUT = 4096


def _response_tables(kind, rng):
    """(to_linear, to_luma): two tables over [0, 1], each other's inverse."""
    grid = np.linspace(0.0, 1.0, _LUT)
    if kind == "linear":
        linear = grid
    elif kind == "gamma":
        linear = grid ** rng.uniform(1.8, 2.4)
    elif kind == "srgb":
        linear = np.where(grid <= 0.04045, grid / 12.92, ((grid + 0.055) / 1.055) ** 2.4)
    else:
        # A film-like S: contrast added around the middle of a gamma curve, still monotonic.
        gamma = grid ** rng.uniform(1.8, 2.4)
        amount = rng.uniform(0.2, 0.8)
        linear = (1 - amount) * gamma + amount * (1 - np.sqrt(1 - grid))
        linear = linear / linear[-1]
    inverse = np.interp(grid, linear, grid)
    return linear, inverse


def _through(table, x):
    """Look x (any shape, clipped to [0, 1]) up in a table, linearly between its entries."""
    position = np.clip(x, 0.0, 1.0).astype(np.float32) * np.float32(_LUT - 1)
    low = np.minimum(position.astype(np.int32), _LUT - 2)
    table = table.astype(np.float32)
    start = table[low]
    return start + (position - low.astype(np.float32)) * (table[low + 1] - start)
