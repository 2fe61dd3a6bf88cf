"""The discriminator of DBLRGAN (Table II)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import ops

SMALLEST = 16  # rows and columns: the four groups each halve a picture
FUSED_FROM = 2**20  # multiply-adds of a tap of a convolution, from which on it runs as a fused op on a CPU


class Discriminator(nn.Module):
    """Tells real sharp frames from restored ones: 14 3x3 convolutions with batch norm and ReLU in groups of
    2x64, 3x128, 4x256 and 5x512 channels, then FC 4096 and FC 2 (Table II).

    The table gives neither stride nor pooling nor an activation between the two FC: as in VGG, which the paper
    names as its model, 2x2 max pooling follows each group and ReLU follows FC 4096. Adaptive average pooling to
    `pool` x `pool` precedes FC 4096, so that every picture of at least 16x16 pixels fits.

    width: channels of the first group; the others have 2, 4 and 8 times as many. hidden: outputs of the first
        FC. in_channels: 1, luma.

    forward: (N, in_channels, H, W), H and W at least 16 -> logits (N, 2); class 1 is "a real sharp frame". The
    two-way softmax is part of the losses (training/losses.py). Parameters and buffers carry the names and
    shapes of python_ref.Discriminator. Raises ValueError for arguments or inputs that do not fit.
    """

    def __init__(self, in_channels: int = 1, hidden: int = 4096, pool: int = 4, width: int = 64):
        super().__init__()
        for name, value in (("in_channels", in_channels), ("hidden", hidden), ("pool", pool), ("width", width)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}")
        self.in_channels = in_channels
        layers, channels = [], in_channels
        for count, times in ((2, 1), (3, 2), (4, 4), (5, 8)):
            for _ in range(count):
                layers += [nn.Conv2d(channels, times * width, 3, padding=1), nn.BatchNorm2d(times * width), nn.ReLU()]
                channels = times * width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(pool), nn.Flatten())
        self.classifier = nn.Sequential(nn.Linear(channels * pool * pool, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.in_channels or min(x.shape[2:]) < SMALLEST:
            raise ValueError(f"Discriminator: wanted an input (N, {self.in_channels}, H, W) of at least "
                             f"{SMALLEST}x{SMALLEST} pixels, got {tuple(x.shape)}")
        layers = iter(self.features)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                x = _convolved(x, layer, next(layers), next(layers))
            else:
                x = layer(x)
        return self.classifier(x)


def _convolved(x: Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d, relu: nn.ReLU) -> Tensor:
    """Convolution, batch norm and ReLU: in one op on a CPU, where that was measured to take 0.7 of the time.

    Modules run one by one where they were replaced (synchronised batch norm), where maps are too small to pay for an
    op's overhead, and where weights are frozen while gradients pass through them (the generator's step): torch then
    computes no gradient of the weights at all.
    """
    frozen = torch.is_grad_enabled() and not conv.weight.requires_grad
    small = x.numel() * conv.out_channels < FUSED_FROM
    if x.device.type != "cpu" or frozen or small or type(bn) is not nn.BatchNorm2d or type(conv) is not nn.Conv2d:
        return relu(bn(conv(x)))
    if bn.training:
        bn.num_batches_tracked.add_(1)
    return ops.conv_bn_act(x, conv.weight, conv.bias, bn.weight, bn.bias, bn.running_mean, bn.running_var, relu=True,
                           training=bn.training, momentum=bn.momentum, eps=bn.eps)
