"""The one rule by which results are judged, in every test.

A result is compared with the same function in float64. It may err by twice as much as plain (eager) torch
errs on the same inputs in the same type, plus one ulp of the result's scale: eps * max|reference|.
Errors are the largest absolute ones over the tensor. No test carries a tolerance of its own.

What eager torch errs is a matter of luck on tensors of few values, and of the kernels that it chooses for the CPU at
hand. Tests that judge such tensors run it on the problem and on mirror images of it (`turned`), which are the same
function summed in other orders (`orders`); the largest of the errors counts.

Winograd's transforms (CPU kernels in float32, 16 channels and more) round more than plain sums. Their results may
instead differ by 5e-6 of their norm (Frobenius) a convolution on the way; gradients count forward and backward.
So they do in bfloat16, where the CPU has AVX512-BF16 and no AMX, but there in gradients alone, which may differ by
three eps of their norm a convolution backwards: rounding both factors of a product errs 0.2 eps each (RMS), F(4x4)'s
transforms multiply that by 4.8, and sums whose terms cancel err more than their terms.

A float64 result is itself judged against float64. There eager's error is taken from float32 and scaled by
the ratio of the two epsilons, for errors grow with the number of roundings, not with the type, or it is the
difference to a float64 run that sums in another order; and a third such error is allowed for the reference,
which is then no more exact than the result.
"""

import copy

import torch


def orders(backend):
    """(mirror, memory format) of the runs of eager torch that judge a backend: the torch backend, which computes in
    channels_last, is judged by eager torch's errors in that format too; our kernels are not, for they are larger."""
    formats = (torch.preserve_format, torch.channels_last) if backend == "torch" else (torch.preserve_format,)
    return [(mirror, memory_format) for mirror in ((False, False), (True, True), (True, False), (False, True))
            for memory_format in formats]


ORDERS = orders("ours")
WINOGRAD = {torch.float32: 5e-6, torch.bfloat16: 3 * torch.finfo(torch.bfloat16).eps}  # a convolution, of the norm


def turned(t, mirror):
    """t, a map (N, C, H, W), a kernel, a bias or another value a channel, turned around along its last two dimensions
    (height and width) where mirror[1], along all others (pictures, channels, frames) where mirror[0].

    A network of convolutions gives the turned result of its turned input, where its parameters are turned as well."""
    picture = (t.dim() - 2, t.dim() - 1) if t.dim() > 2 else ()
    return t.flip([d for d in range(t.dim()) if mirror[d in picture]])


def ordered(t, order):
    """t turned, in the memory format of the order where it has height and width."""
    t = turned(t, order[0])
    return t.clone(memory_format=order[1]) if t.dim() == 4 else t


def ordered_model(model, order):
    """A copy of a network of convolutions with every parameter and running statistic `ordered`."""
    model = copy.deepcopy(model)
    for t in (*model.parameters(), *model.buffers()):
        t.data = ordered(t.data, order)
    return model


@torch.no_grad()
def outputs(model, x, backend="ours"):
    """The model's output of x, once for each of the backend's `orders`."""
    return [turned(ordered_model(model, order)(ordered(x, order)), order[0]) for order in orders(backend)]


def assert_close_as_eager(name, ours, eager, reference, scale=None, winograd=0):
    """Raises AssertionError unless `ours` is as close to `reference` as the rule above asks.

    ours, eager: tensors of one shape, floating point; reference: the same in float64, from the same inputs.
        eager may be several tensors, of runs in different orders; the one that errs most counts.
    scale: natural size of the result where max|reference| understates it, as for a gradient that is zero in
        exact arithmetic because its terms cancel; the larger of the two counts.
    winograd: how many convolutions on the way to the result went through Winograd's transforms; in bfloat16, with
        products in it.
    """
    runs = [eager] if isinstance(eager, torch.Tensor) else eager
    shapes = [tuple(t.shape) for t in (ours, *runs, reference)]
    assert len(set(shapes)) == 1, f"{name}: shapes of ours, eager, reference differ: {shapes}"
    if ours.numel() == 0:
        return
    assert reference.dtype == torch.float64, f"{name}: the reference must be float64, it is {reference.dtype}"
    with torch.no_grad():
        error = (ours.double() - reference).abs().max().item()
        eager_ulps = max((t.double() - reference).abs().max().item() / torch.finfo(t.dtype).eps for t in runs)
        size = max(reference.abs().max().item(), scale or 0.0)
    factor = 3 if ours.dtype == torch.float64 else 2
    limit = (factor * eager_ulps + size) * torch.finfo(ours.dtype).eps
    if winograd and error > limit and ours.dtype in WINOGRAD:
        error = (ours.double() - reference).norm().item()
        limit = winograd * WINOGRAD[ours.dtype] * max(reference.norm().item(), (scale or 0.0) * reference.numel() ** 0.5)
    assert error <= limit, (f"{name}: error {error:.3e} is over the limit {limit:.3e} "
                            f"(eager's error {eager_ulps:.3g} ulps, scale {size:.3e}, shape {shapes[0]})")
