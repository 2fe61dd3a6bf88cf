"""DBLRNet as Table I of the paper gives it, and its variants of Section IV-C."""

import torch
from torch import nn

from . import ops

VARIANTS = ("3d", "multi", "single")


class ConvBN(nn.Module):
    """Parameters of one of L3 to L32: convolution with bias, then batch norm."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)

    def tensors(self):
        conv, bn = self.conv, self.bn
        return conv.weight, conv.bias, bn.weight, bn.bias, bn.running_mean, bn.running_var

    def forward(self, x, residual=None, relu=False):
        if self.training:
            self.bn.num_batches_tracked.add_(1)
        return ops.conv_bn_act(x, *self.tensors(), residual=residual, relu=relu,
                               training=self.training, momentum=self.bn.momentum, eps=self.bn.eps)


class ResidualBlock(nn.Module):
    """L(X), L(X+1) of Table I: y = x + BN(conv(ReLU(BN(conv(x)))))."""

    def __init__(self, channels):
        super().__init__()
        self.first = ConvBN(channels)
        self.second = ConvBN(channels)

    def forward(self, x):
        return self.second(self.first(x, relu=True), residual=x)


class DBLRNet(nn.Module):
    """Five blurry luma frames in, the sharp centre frame out (Table I, Figure 2).

    frames: length of the window, odd, at least 3 ("single": 1). Temporal extent is 3 in L1 and all that is
        left (frames - 2) in L2, so that time collapses to 1 for every length; 5 is the paper's.
    variant: "3d" is DBLRNet; "multi" has 2-D convolutions over frames stacked as channels; "single" has
        2-D convolutions over one frame (Section IV-C).
    tail_skip: True adds L30's and L2's outputs to L32's batch norm, as Table I lists them; False adds L2's
        alone, as the table's caption can be read.
    width, blocks: channels of the body (64) and number of residual blocks (14).

    forward: (N, frames, H, W) luma in [0, 1] -> (N, 1, H, W), not clamped.
    """

    def __init__(self, frames=5, variant="3d", tail_skip=True, width=64, blocks=14):
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        wanted = frames == 1 if variant == "single" else frames >= 3 and frames % 2 == 1
        if not wanted:
            need = "1" if variant == "single" else "an odd number of at least 3"
            raise ValueError(f"variant {variant!r} needs frames to be {need}, got {frames}")
        self.frames, self.variant, self.tail_skip = frames, variant, tail_skip
        if variant == "3d":
            self.conv1 = nn.Conv3d(1, 16, 3, padding=(0, 1, 1))
            self.conv2 = nn.Conv3d(16, width, (frames - 2, 3, 3), padding=(0, 1, 1))
        else:
            self.conv1 = nn.Conv2d(frames, 16, 3, padding=1)
            self.conv2 = nn.Conv2d(16, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.conv31 = ConvBN(width)
        self.conv32 = ConvBN(width)
        self.conv33 = nn.Conv2d(width, 4 * width, 3, padding=1)
        self.conv34 = nn.Conv2d(4 * width, 4 * width, 3, padding=1)
        self.conv35 = nn.Conv2d(4 * width, 1, 3, padding=1)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        """Gaussian weights of mean 0 and standard deviation 0.01 (Section IV-B), zero biases."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                module.weight.normal_(0.0, 0.01)
                module.bias.zero_()

    def stem(self, x):
        return ops.stem(x, self.conv1.weight, self.conv1.bias, self.conv2.weight, self.conv2.bias)

    def forward(self, x):
        l2 = self.stem(x)
        y = l2
        for block in self.blocks:
            y = block(y)
        skip = y + l2 if self.tail_skip else l2
        y = self.conv32(self.conv31(y, relu=True), residual=skip)
        tail = (self.conv33, self.conv34, self.conv35)
        return ops.reconstruct(y, *(t for conv in tail for t in (conv.weight, conv.bias)))
