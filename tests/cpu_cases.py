"""Inputs and runs of the CPU backend's functions, beside the same from python_ref in any dtype.

A ReLU's gradient jumps at zero, so a value that rounding carries across zero says nothing about precision.
Biases (or beta) are therefore chosen so that zero falls into the widest gap between a channel's values.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from tolerance import ORDERS, ordered, turned

from dblr_fast import _cpu
from python_ref import ops as ref

WIDTHS = {"real": (64, 64, 256), "odd": (5, 19, 37)}  # channels in, out, and wide
OPS = ("stem_3d", "stem_2d", "conv", "conv_relu_residual", "block", "reconstruct")


def zero_in_a_gap(z):
    """(C,) what to add to the channels of z (N, C, H, W) so that zero lies in a wide gap about the median."""
    values = z.transpose(0, 1).flatten(1).sort(1).values
    if values.shape[1] == 1:
        return 0.5 - values[:, 0]
    quarter = values.shape[1] // 4
    middle = values[:, quarter:values.shape[1] - quarter]
    at = middle.diff(dim=1).argmax(1, keepdim=True)
    return -(middle.gather(1, at) + middle.gather(1, at + 1))[:, 0] / 2


def conv(x, weight):
    return F.conv2d(x, weight, padding=1)


def normalised(z, gamma, bias, mean, var, training):
    if training:
        return F.batch_norm(z, None, None, gamma, None, True, 0.0, 1e-5)
    return F.batch_norm(z + bias.view(1, -1, 1, 1), mean, var, gamma, None, False, 0.0, 1e-5)


@lru_cache(maxsize=None)
def inputs(op, widths, n, h, w, training):
    """(differentiable tensors, running statistics, gradient of the output), float32."""
    g = torch.Generator().manual_seed(hash((OPS.index(op), len(widths), n, h, w)) % 2**31)
    cin, cout, wide = WIDTHS[widths]

    def randn(*shape, std=1.0):
        return torch.randn(shape, generator=g) * std

    def weight(*shape):
        return randn(*shape, std=(2 / torch.Size(shape[1:]).numel()) ** 0.5)

    def rectified(z):  # one bias a channel, and what leaves the layer with it
        bias = zero_in_a_gap(z)
        return bias, F.relu(z + bias.view(1, -1, *[1] * (z.dim() - 2)))

    def statistics(c):
        return [randn(c, std=0.3), torch.rand(c, generator=g) + 0.5]

    if op.startswith("stem"):
        x = torch.rand(n, 5, h, w, generator=g)
        if op == "stem_3d":
            w1, w2 = weight(16, 1, 3, 3, 3), weight(cout, 16, 3, 3, 3)
            z = F.conv3d(x.unsqueeze(1), w1, padding=(0, 1, 1))
            b1, middle = rectified(z.flatten(3))
            b2, _ = rectified(F.conv3d(middle.view(z.shape), w2, padding=(0, 1, 1)).squeeze(2))
        else:
            w1, w2 = weight(16, 5, 3, 3), weight(cout, 16, 3, 3)
            b1, middle = rectified(conv(x, w1))
            b2, _ = rectified(conv(middle, w2))
        return (x, w1, b1, w2, b2), (), randn(n, cout, h, w)
    x = randn(n, cin, h, w)
    if op == "reconstruct":
        w1, w2, w3 = weight(wide, cin, 3, 3), weight(wide, wide, 3, 3), weight(1, wide, 3, 3)
        b1, h1 = rectified(conv(x, w1))
        b2, _ = rectified(conv(h1, w2))
        return (x, w1, b1, w2, b2, w3, randn(1)), (), randn(n, 1, h, w)
    if op == "block":
        cout = cin
    w1, b1, g1, s1 = weight(cout, cin, 3, 3), randn(cout, std=0.1), 1 + randn(cout, std=0.2), statistics(cout)
    be1 = zero_in_a_gap(normalised(conv(x, w1), g1, b1, *s1, training))
    if op == "conv":
        return (x, w1, b1, g1, be1), tuple(s1), randn(n, cout, h, w)
    if op == "conv_relu_residual":
        return (x, w1, b1, g1, be1, randn(n, cout, h, w)), tuple(s1), randn(n, cout, h, w)
    second = weight(cin, cin, 3, 3), randn(cin, std=0.1), 1 + randn(cin, std=0.2), randn(cin, std=0.2)
    return (x, w1, b1, g1, be1, *second), (*s1, *statistics(cin)), randn(n, cin, h, w)


def call_reference(op, tensors, running, training):
    if op.startswith("stem"):
        return ref.stem(*tensors)
    if op == "reconstruct":
        return ref.reconstruct(*tensors)
    running = [t.clone() for t in running]
    if op == "block":
        return ref.residual_block(tensors[0], (*tensors[1:5], *running[:2]), (*tensors[5:], *running[2:]), training)
    residual = tensors[5] if op == "conv_relu_residual" else None
    return ref.conv_bn_act(*tensors[:5], *running, residual, residual is not None, training)


@lru_cache(maxsize=None)
def reference(case, dtype, order=ORDERS[0]):
    """{name: tensor} of python_ref's output and gradients; batch statistics too where there are some."""
    op, training = case[0], case[-1]
    tensors, running, grad = inputs(*case)
    leaves = [ordered(t.to(dtype), order).requires_grad_() for t in tensors]
    y = call_reference(op, leaves, [ordered(t.to(dtype), order) for t in running], training)
    results = {"y": y.detach()}
    gradients = torch.autograd.grad(y, leaves, ordered(grad.to(dtype), order))
    results.update({name: g for name, g in zip(gradient_names(op), gradients)})
    if op in ("conv", "conv_relu_residual") and training:
        var, mean = torch.var_mean(conv(leaves[0], leaves[1]).detach(), (0, 2, 3), correction=0)
        results.update(mean=mean, var=var)
    return {name: turned(t, order[0]) for name, t in results.items()}


def eager(case, dtype):
    """{name: what eager torch gives, in each of ORDERS}; in float32 as well when dtype is float64."""
    runs = [reference(case, t, order) for t in {torch.float32, dtype} for order in ORDERS]
    return {name: [r[name] for r in runs] for name in runs[0]}


def winograd_layers(case, name):
    """How many convolutions on the way to a result of `ours` go through Winograd's transforms."""
    op, widths = case[:2]
    if widths == "odd":
        return 0
    forward = {"block": 2, "reconstruct": 2}.get(op, 1)
    return 2 * forward if name.startswith("d") else forward


def bf16_winograd_layers(case, name):
    """How many convolutions on the way to a gradient go through Winograd's transforms with products in bf16."""
    op, widths = case[:2]
    if widths == "odd" or not _cpu.has_bf16() or _cpu.isa().startswith("amx"):
        return 0
    last = {"block": ("dw2",), "reconstruct": ("dw2", "db1")}.get(op, ("dx", "dw", "dw1", "db1", "dw2"))
    both = {"block": ("dx", "dw1"), "reconstruct": ("dx", "dw1")}.get(op, ())
    if op == "block" and name in ("dg1", "dbe1"):
        return 1
    return 2 if name in both else 1 if name in last else 0


def gradient_names(op):
    if op.startswith("stem"):
        return "dx", "dw1", "db1", "dw2", "db2"
    if op == "reconstruct":
        return "dx", "dw1", "db1", "dw2", "db2", "dw3", "db3"
    if op == "block":
        return "dx", "dw1", "db1", "dg1", "dbe1", "dw2", "db2", "dg2", "dbe2"
    return ("dx", "dw", "db", "dg", "dbe") + (("dresidual",) if op == "conv_relu_residual" else ())


def assert_same_bits(results, other):
    for name in results:
        assert torch.equal(results[name], other[name]), name


def ours(backend, case, dtype=torch.float32, layout=lambda t: t, need_x=True, save=2):
    """The same from the backend's own functions; save: maps that a block is to keep, 0: the output alone."""
    tensors, running, grad = ([t.to(dtype) for t in part] if isinstance(part, tuple) else part.to(dtype)
                              for part in inputs(*case))
    op, training = case[0], case[-1]
    maps = [layout(t) if t.dim() == 4 and i in (0, 5) and op != "reconstruct" or i == 0 else t
            for i, t in enumerate(tensors)]
    x, grad = maps[0], layout(grad)
    if op.startswith("stem"):
        y = backend.stem(*maps)
        if not save:
            return {"y": y}
        gradients = backend.stem_backward(grad, x, y, *maps[1:4], need_x)
        return dict(zip(("y", *gradient_names(op)), (y, *gradients)))
    if op == "reconstruct":
        y, h1, h2 = backend.reconstruct(*maps, save)
        if not save:
            return {"y": y}
        gradients = backend.reconstruct_backward(grad, x, h1, h2, *maps[1::2], need_x)
        return dict(zip(("y", *gradient_names(op)), (y, *gradients)))
    eps = 1e-5
    if op == "block":
        first, second = maps[1:5], maps[5:]
        y, m1, v1, m2, v2, z1, z2 = backend.residual_block(x, *first, *running[:2], *second, *running[2:], training,
                                                          eps, save)
        if not save:
            return {"y": y}
        m1, v1, m2, v2 = (m1, v1, m2, v2) if training else running
        gradients = backend.residual_block_backward(grad, x, *first, m1, v1, z1, *second, m2, v2, z2, training, eps,
                                                    need_x)
        return dict(zip(("y", *gradient_names(op)), (y, *gradients)))
    residual = maps[5] if op == "conv_relu_residual" else None
    relu = residual is not None
    y, mean, var, z = backend.conv_bn_act(*maps[:5], *running, residual, relu, training, eps, save)
    results = {"y": y} | ({"mean": mean, "var": var} if training else {})
    if save:
        used = (mean, var) if training else running
        gradients = backend.conv_bn_act_backward(grad, *maps[:5], *used, z, relu, training, eps, need_x)
        results.update(zip(gradient_names(op), gradients))
    return results
