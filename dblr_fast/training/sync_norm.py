"""Batch norm over the batches of all processes together, with torch's own operations.

torch's SyncBatchNorm runs on GPUs alone; this one runs wherever torch.distributed does. A module that holds it
leaves the fused ops for plain ones (see ConvBN.fusable): statistics of other machines cannot be had within one
kernel.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

_ALL_BUT_CHANNELS = (0, 2, 3)


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias with mean and var of all processes' values.

    Gradients are those of the sum of all processes' losses, as DDP, which averages them, expects.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        wide = x.to(weight.dtype)
        # Values about this process' own mean, which loses nothing where the mean is far from zero; what the means
        # of the processes differ by is joined in float64, a number a channel.
        centre = wide.mean(_ALL_BUT_CHANNELS)
        about = wide - _of_channels(centre)
        count = torch.full((1,), x.numel() // x.shape[1], dtype=torch.float64, device=x.device)
        rest = about.mean(_ALL_BUT_CHANNELS).double()
        spread = about.square().sum(_ALL_BUT_CHANNELS).double() - count * rest.square()
        mine = torch.cat([centre.double() + rest, spread, count])
        every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(every, mine)
        means, spreads, counts = torch.stack(every).split([len(rest), len(rest), 1], dim=1)
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        variance = (spreads + counts * (means - mean).square()).sum(0) / total
        scale = (variance + eps).rsqrt()
        shift = ((centre.double() - mean) * scale).to(weight.dtype)
        scale = scale.to(weight.dtype)
        ctx.save_for_backward(x, weight, centre, scale, shift, total)
        y = about * _of_channels(scale * weight) + _of_channels(shift * weight + bias)
        ctx.mark_non_differentiable(mean, variance, total)
        return y.to(x.dtype), mean, variance, total

    @staticmethod
    def backward(ctx, dy, *_):
        x, weight, centre, scale, shift, total = ctx.saved_tensors
        wide = dy.to(weight.dtype)
        normal = (x.to(weight.dtype) - _of_channels(centre)) * _of_channels(scale) + _of_channels(shift)
        dbias = wide.sum(_ALL_BUT_CHANNELS)
        dweight = (wide * normal).sum(_ALL_BUT_CHANNELS)
        dx = None
        if ctx.needs_input_grad[0]:
            sums = torch.cat([dbias, dweight])
            dist.all_reduce(sums)
            every_bias, every_weight = (sums / total).to(weight.dtype).chunk(2)
            dx = (wide - _of_channels(every_bias) - normal * _of_channels(every_weight)) * _of_channels(scale * weight)
            dx = dx.to(x.dtype)
        return dx, dweight, dbias, None


def _of_channels(v: Tensor) -> Tensor:
    return v.view(1, -1, 1, 1)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d, in training mode over the batches of all processes of the default group; in evaluation
    mode, and with one process, the same as it. Every process must call it equally often, with any batch."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        y, mean, variance, total = _Normalise.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((variance * (total / (total - 1))).to(self.running_var.dtype), self.momentum)
        return y


def synchronised(module: nn.Module) -> nn.Module:
    """Turns every BatchNorm2d within the module into a SyncBatchNorm2d, in place; names and tensors stay."""
    for child in module.modules():  # the module itself is the first
        if type(child) is nn.BatchNorm2d:
            child.__class__ = SyncBatchNorm2d
    return module
