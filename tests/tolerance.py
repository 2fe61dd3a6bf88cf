"""The one rule by which results are judged, in every test.

A result is compared with the same function in float64. It may err by twice as much as plain (eager) torch
errs on the same inputs in the same type, plus one ulp of the result's scale: eps * max|reference|.
Errors are the largest absolute ones over the tensor. No test carries a tolerance of its own.

Winograd's transforms (CPU kernels in float32, 16 channels and more) round more than plain sums. Their results may
instead differ by 5e-6 of their norm (Frobenius) a convolution on the way; gradients count forward and backward.

A float64 result is itself judged against float64. There eager's error is taken from float32 and scaled by
the ratio of the two epsilons, for errors grow with the number of roundings, not with the type, or it is the
difference to a float64 run that sums in another order; and a third such error is allowed for the reference,
which is then no more exact than the result.
"""

import torch


def assert_close_as_eager(name, ours, eager, reference, scale=None, winograd=0):
    """Raises AssertionError unless `ours` is as close to `reference` as the rule above asks.

    ours, eager: tensors of one shape, floating point; reference: the same in float64, from the same inputs.
    scale: natural size of the result where max|reference| understates it, as for a gradient that is zero in
        exact arithmetic because its terms cancel; the larger of the two counts.
    winograd: how many convolutions on the way to the result went through Winograd's transforms.
    """
    shapes = [tuple(t.shape) for t in (ours, eager, reference)]
    assert len(set(shapes)) == 1, f"{name}: shapes of ours, eager, reference differ: {shapes}"
    if ours.numel() == 0:
        return
    assert reference.dtype == torch.float64, f"{name}: the reference must be float64, it is {reference.dtype}"
    with torch.no_grad():
        error = (ours.double() - reference).abs().max().item()
        eager_error = (eager.double() - reference).abs().max().item()
        size = max(reference.abs().max().item(), scale or 0.0)
    eager_ulps = eager_error / torch.finfo(eager.dtype).eps
    factor = 3 if ours.dtype == torch.float64 else 2
    limit = (factor * eager_ulps + size) * torch.finfo(ours.dtype).eps
    if winograd and error > limit and ours.dtype == torch.float32:
        error = (ours.double() - reference).norm().item()
        limit = winograd * 5e-6 * max(reference.norm().item(), (scale or 0.0) * reference.numel() ** 0.5)
    assert error <= limit, (f"{name}: error {error:.3e} is over the limit {limit:.3e} "
                            f"(eager's error {eager_error:.3e}, scale {size:.3e}, shape {shapes[0]})")
