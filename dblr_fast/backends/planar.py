"""The stem's 3-D convolutions, which collapse time, as 2-D ones over frames and channels stacked."""

from __future__ import annotations

from torch import Tensor


def planar_stem(w1: Tensor, b1: Tensor, w2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(w1, b1, w2) of the same stem in 2-D; those of a 2-D stem stay as they are.

    w1 (M, 1, 3, 3, 3) becomes banded (M * (T-2), T, 3, 3): channel m * (T-2) + t sees frames t to t + 2.
    That is the order in which w2 (C, M, T-2, 3, 3) lies in memory.
    """
    if w1.dim() == 4:
        return w1, b1, w2
    middle, times = w1.shape[0], w2.shape[2]
    banded = w1.new_zeros((middle, times, times + 2, 3, 3))
    for t in range(times):
        banded[:, t, t:t + 3] = w1[:, 0]
    return (banded.view(middle * times, times + 2, 3, 3), b1.repeat_interleave(times),
            w2.reshape(w2.shape[0], middle * times, 3, 3))


def stem_gradients(dw1: Tensor, db1: Tensor, dw2: Tensor, w1: Tensor, w2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of w1, b1 and w2 from those of their planar form: a weight in 3-D stands in the bands of all times."""
    if w1.dim() == 4:
        return dw1, db1, dw2
    middle, times = w1.shape[0], w2.shape[2]
    bands = dw1.reshape(middle, times, times + 2, 3, 3)
    dw1 = sum(bands[:, t, t:t + 3] for t in range(times)).unsqueeze(1)
    return dw1, db1.view(middle, times).sum(1), dw2.view(w2.shape)
