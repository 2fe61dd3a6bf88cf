"""L33, L34 and L35 of Table I in one op: the map becomes a frame."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import (backend_for, check_map, check_parameters, check_shape, choices, define, follow_autocast,
                      gradients_like, kept, map_like, needs_gradient, or_none, parameters_for)


def reconstruct(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor) -> Tensor:
    """64 -> 256 -> 256 -> 1: three 3x3 convolutions, ReLU after the first two (L33 to L35 of Table I).

    x: (N, C, H, W); w1 (M, C, 3, 3), w2 (K, M, 3, 3), w3 (1, K, 3, 3) and biases b1 (M,), b2 (K,), b3 (1,).
    Returns (N, 1, H, W), not clamped. Raises RuntimeError when shapes, dtypes or devices do not fit.
    """
    save = needs_gradient(x, w1, b1, w2, b2, w3, b3)
    return torch.ops.dblr_fast.reconstruct(x, w1, b1, w2, b2, w3, b3, save, *choices(x))[0]


def _check(x, w1, b1, w2, b2, w3, b3):
    check_map("reconstruct", x)
    middle, last = w1.shape[0], w2.shape[0]
    shapes = dict(w1=(middle, x.shape[1], 3, 3), b1=(middle,), w2=(last, middle, 3, 3), b2=(last,),
                  w3=(1, last, 3, 3), b3=(1,))
    tensors = dict(w1=w1, b1=b1, w2=w2, b2=b2, w3=w3, b3=b3)
    for name, shape in shapes.items():
        check_shape("reconstruct", name, tensors[name], shape)
    check_parameters("reconstruct", x, **tensors)


def _run(x, w1, b1, w2, b2, w3, b3, save, backend, precision):
    _check(x, w1, b1, w2, b2, w3, b3)
    run = backend_for(x, backend, precision)
    return run.reconstruct(x, *parameters_for(run, x, w1, b1, w2, b2, w3, b3), save)


def _fake(x, w1, b1, w2, b2, w3, b3, save, backend, precision):
    _check(x, w1, b1, w2, b2, w3, b3)
    n, _, h, w = x.shape
    h1, h2 = (map_like(x, t.shape[0]) if save else x.new_empty(0) for t in (w1, w2))
    return x.new_empty((n, 1, h, w)), h1, h2


def _run_backward(grad, x, h1, h2, w1, w2, w3, need_x, backend, precision):
    run = backend_for(x, backend, precision)
    dx, *rest = run.reconstruct_backward(grad, x, h1, h2, *parameters_for(run, x, w1, w2, w3), need_x)
    return kept(dx, x), *gradients_like(rest, (w1, w1, w2, w2, w3, w3))


def _fake_backward(grad, x, h1, h2, w1, w2, w3, need_x, backend, precision):
    dx = map_like(x, x.shape[1]) if need_x else x.new_empty(0)
    return (dx, *(t for w in (w1, w2, w3) for t in (w.new_empty(w.shape), w.new_empty(w.shape[0]))))


define("reconstruct(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor w3, Tensor b3, bool save, "
       "str backend, str precision) -> (Tensor, Tensor, Tensor)", _run, _fake)
define("reconstruct_backward(Tensor grad, Tensor x, Tensor h1, Tensor h2, Tensor w1, Tensor w2, Tensor w3, "
       "bool need_x, str backend, str precision) "
       "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)", _run_backward, _fake_backward)


def _setup(ctx, inputs, output):
    x, w1, _, w2, _, w3, _, _, ctx.backend, ctx.precision = inputs
    _, h1, h2 = output
    ctx.mark_non_differentiable(h1, h2)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, h1, h2, w1, w2, w3)


def _backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 10
    need_x = ctx.needs_input_grad[0]
    dx, *rest = torch.ops.dblr_fast.reconstruct_backward(
        grad, *ctx.saved_tensors, need_x, ctx.backend, ctx.precision)
    return or_none(dx, need_x), *rest, None, None, None


torch.library.register_autograd("dblr_fast::reconstruct", _backward, setup_context=_setup)
follow_autocast("reconstruct", maps=(0,), parameters=(1, 2, 3, 4, 5, 6))
