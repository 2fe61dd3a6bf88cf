"""L(X) and L(X+1) of Table I in one op: x + BN(conv(ReLU(BN(conv(x)))))."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import (backend_for, check, check_map, choices, define, follow_autocast, gradients_like, kept, map_like,
                      needs_gradient, or_none, parameters_for)
from .conv_bn_act import check_convolution, statistics_like, update_running

NAMES = ("weight", "bias", "gamma", "beta", "running_mean", "running_var")


def residual_block(x: Tensor, first: tuple[Tensor, ...], second: tuple[Tensor, ...], training: bool = False,
                   momentum: float = 0.1, eps: float = 1e-5, keep: int = 2) -> Tensor:
    """x + BN(conv(ReLU(BN(conv(x))))), L(X) and L(X+1) of Table I.

    x: (N, C, H, W). first, second: (weight (C, C, 3, 3), bias, gamma, beta, running_mean, running_var, all
    (C,)). Returns (N, C, H, W), channels_last. With training the running statistics are updated in place.
    keep: 2 keeps both convolutions' outputs for backward, 1 the first one's, for less memory and more time; the CPU's
    kernels compute the other again (in bfloat16 always), a GPU's keep both.
    Raises RuntimeError when shapes, dtypes or devices do not fit, or keep is another number.
    """
    check(keep in (1, 2), lambda: f"residual_block: wanted keep to be 1 or 2, got {keep!r}")
    save = keep if needs_gradient(x, *first[:4], *second[:4]) else 0
    y, mean1, var1, mean2, var2, _, _ = torch.ops.dblr_fast.residual_block(
        x, *first, *second, training, eps, save, *choices(x))
    if training:
        count = y.numel() // y.shape[1]
        update_running([(*first[4:], mean1, var1, first[1]), (*second[4:], mean2, var2, second[1])], momentum, count)
    return y


def _check(x, *tensors, training):
    check_map("residual_block", x)
    for half in (tensors[:6], tensors[6:]):
        check_convolution("residual_block", x, half[0], dict(zip(NAMES[1:], half[1:])), training)


def _run(x, w1, b1, g1, be1, rm1, rv1, w2, b2, g2, be2, rm2, rv2, training, eps, save, backend, precision):
    _check(x, w1, b1, g1, be1, rm1, rv1, w2, b2, g2, be2, rm2, rv2, training=training)
    run = backend_for(x, backend, precision)
    w1, b1, w2, b2 = parameters_for(run, x, w1, b1, w2, b2)
    return run.residual_block(x, w1, b1, g1, be1, rm1, rv1, w2, b2, g2, be2, rm2, rv2, training, eps, save)


def _fake(x, w1, b1, g1, be1, rm1, rv1, w2, b2, g2, be2, rm2, rv2, training, eps, save, backend, precision):
    _check(x, w1, b1, g1, be1, rm1, rv1, w2, b2, g2, be2, rm2, rv2, training=training)
    statistics = [statistics_like(g, training) for g in (g1, g1, g2, g2)]
    keeps = backend_for(x, backend, precision).keeps_block_maps(x, save)
    z = [map_like(x, w.shape[0]) if keep else x.new_empty(0) for w, keep in zip((w1, w2), keeps)]
    return (map_like(x, x.shape[1]), *statistics, *z)


def _run_backward(grad, x, w1, b1, g1, be1, mean1, var1, z1, w2, b2, g2, be2, mean2, var2, z2, training, eps,
                  need_x, backend, precision):
    run, like = backend_for(x, backend, precision), (w1, b1, g1, be1, w2, b2, g2, be2)
    w1, b1, w2, b2 = parameters_for(run, x, w1, b1, w2, b2)
    dx, *rest = run.residual_block_backward(
        grad, x, w1, b1, g1, be1, mean1, var1, z1, w2, b2, g2, be2, mean2, var2, z2, training, eps, need_x)
    return kept(dx, x), *gradients_like(rest, like)


def _fake_backward(grad, x, w1, b1, g1, be1, mean1, var1, z1, w2, b2, g2, be2, mean2, var2, z2, training,
                   eps, need_x, backend, precision):
    dx = map_like(x, x.shape[1]) if need_x else x.new_empty(0)
    return (dx, *(t.new_empty(t.shape) for t in (w1, b1, g1, be1, w2, b2, g2, be2)))


_HALF = "Tensor w{0}, Tensor b{0}, Tensor g{0}, Tensor be{0}, Tensor {1}{0}, Tensor {2}{0}, "
_FLAGS = "str backend, str precision"
define("residual_block(Tensor x, " + _HALF.format(1, "rm", "rv") + _HALF.format(2, "rm", "rv")
       + f"bool training, float eps, int save, {_FLAGS}) "
       "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)", _run, _fake)
define("residual_block_backward(Tensor grad, Tensor x, "
       + _HALF.format(1, "mean", "var") + "Tensor z1, " + _HALF.format(2, "mean", "var") + "Tensor z2, "
       + f"bool training, float eps, bool need_x, {_FLAGS}) "
       "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
       _run_backward, _fake_backward)


def _setup(ctx, inputs, output):
    (x, w1, b1, g1, be1, rm1, rv1, w2, b2, g2, be2, rm2, rv2, ctx.training, ctx.eps, _,
     ctx.backend, ctx.precision) = inputs
    _, mean1, var1, mean2, var2, z1, z2 = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    if not ctx.training:
        mean1, var1, mean2, var2 = rm1, rv1, rm2, rv2
    ctx.save_for_backward(x, w1, b1, g1, be1, mean1, var1, z1, w2, b2, g2, be2, mean2, var2, z2)


def _backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 18
    need_x = ctx.needs_input_grad[0]
    dx, *rest = torch.ops.dblr_fast.residual_block_backward(
        grad, *ctx.saved_tensors, ctx.training, ctx.eps, need_x, ctx.backend, ctx.precision)
    return (or_none(dx, need_x), *rest[:4], None, None, *rest[4:], None, None,
            None, None, None, None, None)


torch.library.register_autograd("dblr_fast::residual_block", _backward, setup_context=_setup)
follow_autocast("residual_block", maps=(0,), parameters=(1, 2, 7, 8))
