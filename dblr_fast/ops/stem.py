"""L1 and L2 of Table I in one op: the window of frames becomes one map."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import (backend_for, check, check_map, check_parameters, check_shape, choices, define,
                      follow_autocast, gradients_like, kept, map_like, or_none, parameters_for)


def stem(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Two convolutions with bias and ReLU that fold a window of frames into one map (L1, L2 of Table I).

    x: (N, T, H, W) luma, nominally in [0, 1]. Weights of 3-D convolutions, w1 (M, 1, 3, 3, 3) and
    w2 (C, M, T-2, 3, 3), collapse time T -> T-2 -> 1; weights of 2-D convolutions, w1 (M, T, 3, 3) and
    w2 (C, M, 3, 3), take frames as channels. The table has M = 16 and C = 64. b1 (M,), b2 (C,).
    Returns (N, C, H, W), channels_last. Raises RuntimeError when shapes, dtypes or devices do not fit.
    """
    return torch.ops.dblr_fast.stem(x, w1, b1, w2, b2, *choices(x))


def _check(x, w1, b1, w2, b2):
    check_map("stem", x, "(N, T, H, W)")
    frames, middle, out = x.shape[1], w1.shape[0], w2.shape[0]
    check(w1.dim() in (4, 5), lambda: f"stem: wanted w1 of 4 or 5 dimensions, got {tuple(w1.shape)}")
    if w1.dim() == 5:
        check(frames >= 3, lambda: f"stem: wanted at least 3 frames for 3-D convolutions, got {frames}")
        check_shape("stem", "w1", w1, (middle, 1, 3, 3, 3))
        check_shape("stem", "w2", w2, (out, middle, frames - 2, 3, 3))
    else:
        check_shape("stem", "w1", w1, (middle, frames, 3, 3))
        check_shape("stem", "w2", w2, (out, middle, 3, 3))
    check_shape("stem", "b1", b1, (middle,))
    check_shape("stem", "b2", b2, (out,))
    check_parameters("stem", x, w1=w1, b1=b1, w2=w2, b2=b2)


def _run(x, w1, b1, w2, b2, backend, precision):
    _check(x, w1, b1, w2, b2)
    run = backend_for(x, backend, precision)
    return run.stem(x, *parameters_for(run, x, w1, b1, w2, b2))


def _fake(x, w1, b1, w2, b2, backend, precision):
    _check(x, w1, b1, w2, b2)
    return map_like(x, w2.shape[0])


def _run_backward(grad, x, y, w1, b1, w2, need_x, backend, precision):
    run = backend_for(x, backend, precision)
    dx, *rest = run.stem_backward(grad, x, y, *parameters_for(run, x, w1, b1, w2), need_x)
    return kept(dx, x), *gradients_like(rest, (w1, b1, w2, w2))


def _fake_backward(grad, x, y, w1, b1, w2, need_x, backend, precision):
    dx = x.new_empty(x.shape) if need_x else x.new_empty(0)
    return (dx, w1.new_empty(w1.shape), b1.new_empty(b1.shape), w2.new_empty(w2.shape),
            w2.new_empty(w2.shape[0]))


define("stem(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, str backend, "
       "str precision) -> Tensor", _run, _fake)
define("stem_backward(Tensor grad, Tensor x, Tensor y, Tensor w1, Tensor b1, Tensor w2, bool need_x, "
       "str backend, str precision) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
       _run_backward, _fake_backward)


def _setup(ctx, inputs, output):
    x, w1, b1, w2, _, ctx.backend, ctx.precision = inputs
    ctx.save_for_backward(x, output, w1, b1, w2)


def _backward(ctx, grad):
    need_x = ctx.needs_input_grad[0]
    dx, *rest = torch.ops.dblr_fast.stem_backward(
        grad, *ctx.saved_tensors, need_x, ctx.backend, ctx.precision)
    return or_none(dx, need_x), *rest, None, None


torch.library.register_autograd("dblr_fast::stem", _backward, setup_context=_setup)
follow_autocast("stem", maps=(0,), parameters=(1, 2, 3, 4))
