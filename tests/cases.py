"""Random ops' inputs and the runs that parity tests compare: ours, eager torch's, and float64's."""

import cpu_cases
import torch
import torch.nn.functional as F
from cpu_cases import conv, normalised, zero_in_a_gap
from tolerance import ORDERS, ordered, orders, turned

import python_ref

BACKENDS = ("torch", "cpu")
SIZES = ((1, 1), (1, 7), (3, 5), (37, 53))
OPS = ("stem", "stem_2d", "conv_bn_act", "conv_bn_act_plain", "residual_block", "reconstruct")


def winograd_layers(backend, op, name):
    """How many convolutions on the way to a result may have gone through Winograd's transforms."""
    forward = 2 if op in ("residual_block", "reconstruct") else 1
    return (2 * forward if name.startswith("gradient") else forward) if backend == "cpu" else 0


def bf16_winograd_layers(backend, op, name):
    """The same, with products in bf16; cpu_cases counts, under its own names."""
    if backend != "cpu" or not name.startswith("gradient"):
        return 0
    op = {"stem": "stem_3d", "conv_bn_act": "conv_relu_residual", "conv_bn_act_plain": "conv",
          "residual_block": "block"}.get(op, op)
    return cpu_cases.bf16_winograd_layers((op, "real"), cpu_cases.gradient_names(op)[int(name.split()[1])])


def convolution(out, inner, generator, spatial=(3, 3)):
    """He-initialised weight and a small bias, so that maps keep their scale."""
    fan_in = inner * torch.Size(spatial).numel()
    weight = torch.randn(out, inner, *spatial, generator=generator) * (2 / fan_in) ** 0.5
    return weight, torch.randn(out, generator=generator) * 0.1


def batch_norm(channels, generator):
    """gamma, beta, running_mean, running_var away from their trivial values."""
    def normal(mean, std):
        return mean + std * torch.randn(channels, generator=generator)
    return normal(1, 0.2), normal(0, 0.2), normal(0, 0.3), torch.rand(channels, generator=generator) + 0.5


def op_inputs(op, n, h, w, seed, channels=16, wide=32, frames=5):
    """(differentiable tensors, running statistics) of an op in float32."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, h, w, generator=g)
    if op.startswith("stem"):
        x = torch.rand(n, frames, h, w, generator=g)
        if op == "stem":
            first = convolution(16, 1, g, (3, 3, 3))
            second = convolution(64, 16, g, (frames - 2, 3, 3))
        else:
            first, second = convolution(16, frames, g), convolution(64, 16, g)
        return [x, *first, *second], []
    if op.startswith("conv_bn_act"):
        conv = convolution(wide, channels, g)
        gamma, beta, *running = batch_norm(wide, g)
        residual = [torch.randn(n, wide, h, w, generator=g)] if op == "conv_bn_act" else []
        return [x, *conv, gamma, beta, *residual], running
    if op == "residual_block":
        tensors, running = [x], []
        for _ in range(2):
            gamma, beta, *stats = batch_norm(channels, g)
            tensors += [*convolution(channels, channels, g), gamma, beta]
            running += stats
        return tensors, running
    tail = convolution(wide, channels, g) + convolution(wide, wide, g) + convolution(1, wide, g)
    return [x, *tail], []


def clear_of_zero(op, inputs, training):
    """The inputs with biases (or beta) that put zero into a gap between the values before each ReLU: see cpu_cases."""
    tensors, running = list(inputs[0]), inputs[1]
    if op.startswith("conv_bn_act") or op == "residual_block":
        x, weight, bias, gamma = (t.double() for t in tensors[:4])
        z = normalised(conv(x, weight), gamma, bias, *(t.double() for t in running[:2]), training)
        tensors[4] = zero_in_a_gap(z).float()
        return tensors, running
    x = tensors[0].double()
    x = x.unsqueeze(1) if tensors[1].dim() == 5 else x
    for i in (1, 3):
        weight = tensors[i].double()
        z = F.conv3d(x, weight, padding=(0, 1, 1)) if weight.dim() == 5 else conv(x, weight)
        tensors[i + 1] = zero_in_a_gap(z).float()
        x = F.relu(z + tensors[i + 1].double().view(-1, *[1] * (z.dim() - 2)))
    return tensors, running


def call(ops, op, tensors, running, training):
    """Runs an op of `ops` (python_ref or dblr_fast.ops) on what op_inputs gave."""
    if op.startswith("stem"):
        return ops.stem(*tensors)
    if op == "conv_bn_act":
        return ops.conv_bn_act(*tensors[:5], *running, residual=tensors[5], relu=True, training=training)
    if op == "conv_bn_act_plain":
        return ops.conv_bn_act(*tensors, *running, training=training)
    if op == "residual_block":
        first, second = (*tensors[1:5], *running[:2]), (*tensors[5:9], *running[2:])
        return ops.residual_block(tensors[0], first, second, training=training)
    return ops.reconstruct(*tensors)


def run(ops, op, inputs, training, dtype, layout=lambda t: t, input_gradient=True, order=ORDERS[0]):
    """All results of an op as {name: tensor}: output, every gradient, running statistics."""
    tensors, running = [[ordered(t.to(dtype), order) for t in group] for group in inputs]  # copies
    leaves = [layout(t).detach().requires_grad_(i > 0 or input_gradient) for i, t in enumerate(tensors)]
    y = call(ops, op, leaves, running, training)
    grad = torch.rand(y.shape, generator=torch.Generator().manual_seed(1)) - 0.4
    y.backward(ordered(grad.to(dtype), order))
    results = {"output": y.detach()}
    results.update({f"gradient {i}": t.grad for i, t in enumerate(leaves) if t.grad is not None})
    results.update({f"running {i}": t for i, t in enumerate(running)})
    return {name: turned(t, order[0]) for name, t in results.items()}


def reference(op, inputs, training, dtype, **kwargs):
    return run(python_ref, op, inputs, training, dtype, **kwargs)


def eager(op, inputs, training, backend):
    """{name: what eager torch gives in float32, in each of the backend's `orders`}."""
    runs = [reference(op, inputs, training, torch.float32, order=order) for order in orders(backend)]
    return {name: [r[name] for r in runs] for name in runs[0]}
