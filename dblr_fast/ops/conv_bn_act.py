"""One of L3 to L32 of Table I: 3x3 convolution, batch norm, optional ReLU, optional residual addition."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import (backend_for, check, check_alike, check_map, check_parameters, check_shape, choices, define,
                      follow_autocast, gradients_like, in_dtype, kept, map_like, needs_gradient, or_none, parameters_for)


def conv_bn_act(x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, running_mean: Tensor,
                running_var: Tensor, residual: Tensor | None = None, relu: bool = False,
                training: bool = False, momentum: float = 0.1, eps: float = 1e-5) -> Tensor:
    """3x3 convolution with padding 1, batch norm, optional ReLU, then the optional residual is added.

    x: (N, Cin, H, W); weight (Cout, Cin, 3, 3); bias, gamma, beta, running_mean, running_var (Cout,);
    residual (N, Cout, H, W). Returns (N, Cout, H, W), channels_last. With training, batch statistics
    normalise and the running ones are updated in place (unbiased variance), as torch's batch norm does.
    Raises RuntimeError when shapes, dtypes or devices do not fit, or when training on a single value
    a channel.
    """
    save = needs_gradient(x, weight, bias, gamma, beta, residual)
    y, mean, var, _ = torch.ops.dblr_fast.conv_bn_act(
        x, weight, bias, gamma, beta, running_mean, running_var, residual, relu, training, eps, save,
        *choices(x))
    if training:
        update_running([(running_mean, running_var, mean, var, bias)], momentum, y.numel() // y.shape[1])
    return y


@torch.no_grad()
def update_running(layers: list[tuple[Tensor, ...]], momentum: float, count: int) -> None:
    """Moves running statistics towards the batch's: its mean and its unbiased variance over count values.

    layers: (running_mean, running_var, mean, var, bias) of each. mean, var are those of the convolution without its
    bias, which the running mean holds. On a GPU these are three launches, however many layers there are.
    """
    running_means, running_vars, means, variances, biases = map(list, zip(*layers))
    running = running_means + running_vars
    batch = torch._foreach_add(means, biases) + torch._foreach_mul(variances, count / (count - 1))
    torch._foreach_lerp_(running, [in_dtype(t, r.dtype) for t, r in zip(batch, running)], momentum)


def check_convolution(op, x, weight, vectors, training):
    out = weight.shape[0]
    check_shape(op, "weight", weight, (out, x.shape[1], 3, 3))
    for name, t in vectors.items():
        check_shape(op, name, t, (out,))
    check_parameters(op, x, weight=weight, bias=vectors["bias"])
    check_alike(op, x, dtype_too=False, **vectors)
    if training:
        n, _, h, w = x.shape
        check(n * h * w > 1, lambda: f"{op}: wanted more than one value a channel in training, got an input "
                                     f"of shape {tuple(x.shape)}; use a larger batch or picture, or eval()")


def _check(x, weight, bias, gamma, beta, running_mean, running_var, residual, training):
    check_map("conv_bn_act", x)
    vectors = dict(bias=bias, gamma=gamma, beta=beta, running_mean=running_mean, running_var=running_var)
    check_convolution("conv_bn_act", x, weight, vectors, training)
    if residual is not None:
        check_shape("conv_bn_act", "residual", residual, (x.shape[0], weight.shape[0], *x.shape[2:]))
        check_alike("conv_bn_act", x, residual=residual)


def statistics_like(gamma: Tensor, training: bool) -> Tensor:
    dtype = torch.promote_types(gamma.dtype, torch.float32)
    return gamma.new_empty(gamma.shape if training else (0,), dtype=dtype)


def _run(x, weight, bias, gamma, beta, running_mean, running_var, residual, relu, training, eps, save,
         backend, precision):
    _check(x, weight, bias, gamma, beta, running_mean, running_var, residual, training)
    run = backend_for(x, backend, precision)
    weight, bias = parameters_for(run, x, weight, bias)
    return run.conv_bn_act(x, weight, bias, gamma, beta, running_mean, running_var, residual, relu, training, eps, save)


def _fake(x, weight, bias, gamma, beta, running_mean, running_var, residual, relu, training, eps, save,
          backend, precision):
    _check(x, weight, bias, gamma, beta, running_mean, running_var, residual, training)
    out = weight.shape[0]
    return (map_like(x, out), statistics_like(gamma, training), statistics_like(gamma, training),
            map_like(x, out) if save else x.new_empty(0))


def _run_backward(grad, x, weight, bias, gamma, beta, mean, var, z, relu, training, eps, need_x, backend,
                  precision):
    run = backend_for(x, backend, precision)
    dx, *rest = run.conv_bn_act_backward(grad, x, *parameters_for(run, x, weight, bias), gamma, beta, mean, var, z, relu,
                                         training, eps, need_x)
    return kept(dx, x), *gradients_like(rest, (weight, bias, gamma, beta))


def _fake_backward(grad, x, weight, bias, gamma, beta, mean, var, z, relu, training, eps, need_x, backend,
                   precision):
    dx = map_like(x, x.shape[1]) if need_x else x.new_empty(0)
    return (dx, weight.new_empty(weight.shape), bias.new_empty(bias.shape), gamma.new_empty(gamma.shape),
            beta.new_empty(beta.shape))


define("conv_bn_act(Tensor x, Tensor weight, Tensor bias, Tensor gamma, Tensor beta, Tensor running_mean, "
       "Tensor running_var, Tensor? residual, bool relu, bool training, float eps, bool save, "
       "str backend, str precision) -> (Tensor, Tensor, Tensor, Tensor)", _run, _fake)
define("conv_bn_act_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor gamma, Tensor beta, "
       "Tensor mean, Tensor var, Tensor z, bool relu, bool training, float eps, bool need_x, "
       "str backend, str precision) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
       _run_backward, _fake_backward)


def _setup(ctx, inputs, output):
    (x, weight, bias, gamma, beta, running_mean, running_var, _, ctx.relu, ctx.training, ctx.eps, _,
     ctx.backend, ctx.precision) = inputs
    _, mean, var, z = output
    ctx.mark_non_differentiable(mean, var, z)
    ctx.set_materialize_grads(False)
    if not ctx.training:
        mean, var = running_mean, running_var
    ctx.save_for_backward(x, weight, bias, gamma, beta, mean, var, z)


def _backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 14
    need_x = ctx.needs_input_grad[0]
    dx, *rest = torch.ops.dblr_fast.conv_bn_act_backward(
        grad, *ctx.saved_tensors, ctx.relu, ctx.training, ctx.eps, need_x, ctx.backend, ctx.precision)
    dresidual = or_none(grad, ctx.needs_input_grad[7])
    return or_none(dx, need_x), *rest, None, None, dresidual, None, None, None, None, None, None


torch.library.register_autograd("dblr_fast::conv_bn_act", _backward, setup_context=_setup)
follow_autocast("conv_bn_act", maps=(0, 7), parameters=(1, 2))
