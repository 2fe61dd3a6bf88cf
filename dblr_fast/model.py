"""DBLRNet as a drop-in torch module built from the fused ops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import ops
from .held import parameters_of

VARIANTS = ("3d", "multi", "single")


def count_batch(*norms: nn.BatchNorm2d) -> None:
    """Counts a batch in norms that train alike: on a GPU in one launch."""
    if norms[0].training:
        torch._foreach_add_([bn.num_batches_tracked for bn in norms], 1)


class ConvBN(nn.Module):
    """One of L3 to L32 (Table I): convolution with bias, then batch norm."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)

    def tensors(self) -> tuple[Tensor, ...]:
        conv, bn = self.conv, self.bn
        return conv.weight, conv.bias, bn.weight, bn.bias, bn.running_mean, bn.running_var

    def fusable(self) -> bool:
        """A batch norm that was replaced (SyncBatchNorm) or set up otherwise runs as the module it is."""
        bn = self.bn
        return (type(bn) is nn.BatchNorm2d and type(self.conv) is nn.Conv2d and bn.affine
                and bn.track_running_stats and bn.momentum is not None)

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        if not self.fusable():
            y = self.bn(self.conv(x))
            y = F.relu(y) if relu else y
            return y if residual is None else y + residual
        count_batch(self.bn)
        return ops.conv_bn_act(x, *self.tensors(), residual=residual, relu=relu, training=self.bn.training,
                               momentum=self.bn.momentum, eps=self.bn.eps)


def residual(x: Tensor, first: ConvBN, second: ConvBN, keep: int = 2) -> Tensor:
    """x + BN(conv(ReLU(BN(conv(x))))); keep: see ops.residual_block."""
    a, b = first.bn, second.bn
    if not (first.fusable() and second.fusable()
            and (a.training, a.momentum, a.eps) == (b.training, b.momentum, b.eps)):
        return second(first(x, relu=True), residual=x)
    count_batch(a, b)
    return ops.residual_block(x, first.tensors(), second.tensors(), training=a.training, momentum=a.momentum,
                              eps=a.eps, keep=keep)


class ResidualBlock(nn.Module):
    """L(X), L(X+1) of Table I: y = x + BN(conv(ReLU(BN(conv(x)))))."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = ConvBN(channels)
        self.second = ConvBN(channels)

    def forward(self, x: Tensor) -> Tensor:
        return residual(x, self.first, self.second)


class DBLRNet(nn.Module):
    """Five blurry luma frames in, the sharp centre frame out (Table I and Figure 2 of the paper).

    frames: length of the window, odd and at least 3 ("single": 1). The paper's is 5.
    variant: "3d" (DBLRNet), "multi" (2-D convolutions, frames as channels) or "single" (one frame),
        Section IV-C.
    tail_skip: True adds the outputs of L30 and L2 to L32's batch norm, as Table I lists them; False L2's
        alone, as its caption can be read.
    width, blocks: channels of the body (64) and number of residual blocks (14).
    init: "paper" (Gaussian weights, standard deviation 0.01, Section IV-B) or "identity" (the network
        starts as the identity on the centre frame, exactly but for rounding).

    forward: (N, frames, H, W) luma in [0, 1] -> (N, 1, H, W), not clamped; any H, W >= 1. In evaluation mode
    without gradients it runs on the engine (batch norm folded, weights packed once, exact tiles); otherwise
    through the fused ops. Parameters and buffers carry the names and shapes of python_ref.DBLRNet.

    Raises ValueError for arguments or inputs that do not fit.
    """

    def __init__(self, frames: int = 5, variant: str = "3d", tail_skip: bool = True, width: int = 64,
                 blocks: int = 14, init: str = "paper"):
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}; got {variant!r}")
        need = "1" if variant == "single" else "an odd number of at least 3"
        if not (frames == 1 if variant == "single" else frames >= 3 and frames % 2 == 1):
            raise ValueError(f"variant {variant!r} needs frames to be {need}; got {frames!r}")
        for name, value in (("width", width), ("blocks", blocks)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}")
        if init not in ("paper", "identity"):
            raise ValueError(f"init must be 'paper' or 'identity'; got {init!r}")
        self.frames, self.variant, self.tail_skip = frames, variant, bool(tail_skip)
        self.width = width
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
        self.init = init
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises all parameters and running statistics anew, as `init` says."""
        from . import initialization

        (initialization.identity_ if self.init == "identity" else initialization.paper_)(self)

    def body(self) -> list[ConvBN]:
        """L3 to L32 in order."""
        return [half for block in self.blocks for half in (block.first, block.second)] + [
            self.conv31, self.conv32]

    def to(self, *args, **kwargs):
        """As torch.nn.Module.to; memory_format applies to the 4-D weights (a 5-D one cannot take it)."""
        memory_format = kwargs.pop("memory_format", None)
        if args or kwargs:
            super().to(*args, **kwargs)
        if memory_format is not None:
            for p in self.parameters():
                if p.dim() == 4:
                    p.data = p.data.to(memory_format=memory_format)
        return self

    def extra_repr(self) -> str:
        return f"frames={self.frames}, variant={self.variant!r}, tail_skip={self.tail_skip}"

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.frames:
            raise ValueError(f"DBLRNet: wanted an input (N, {self.frames}, H, W), got {tuple(x.shape)}")
        if self._runs_on_engine(x):
            from .engine import engine_of

            return engine_of(self)(x)
        l2 = ops.stem(x, self.conv1.weight, self.conv1.bias, self.conv2.weight, self.conv2.bias)
        y = l2
        for block in self.blocks:
            y = block(y)
        if self.tail_skip:
            # What comes next takes the most memory of all, and its backward pass while all is kept: one map less.
            y = residual(y, self.conv31, self.conv32, keep=1) + l2
        else:
            y = self.conv32(self.conv31(y, relu=True), residual=l2)
        tail = (self.conv33, self.conv34, self.conv35)
        return ops.reconstruct(y, *(t for conv in tail for t in (conv.weight, conv.bias)))

    def _runs_on_engine(self, x: Tensor) -> bool:
        """The engine serves float32 evaluation without gradients; the ops serve all else."""
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        if torch.is_autocast_enabled(x.device.type) or type(x) not in (Tensor, nn.Parameter) or x.is_meta:
            return False
        if x.dtype != torch.float32 or self.conv1.weight.device != x.device:
            return False
        return (all(p.dtype == torch.float32 and type(p) is nn.Parameter for p in parameters_of(self))
                and all(half.fusable() and not half.bn.training for half in self.body()))
