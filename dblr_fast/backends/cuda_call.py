"""What the extension dblr_fast._cuda takes for tensors: addresses, sizes and kinds of elements."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .cuda import CudaBackend

CL = torch.channels_last
KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
LEVELS = {"exact": torch.float32, "fast": torch.float32, "half": torch.float16, "bf16": torch.bfloat16}


def up(channels: int, unit: int) -> int:
    return -(-channels // unit) * unit


def middle_of(channels: int, unit: int, sm90: bool) -> int:
    """Channels of L1's map: in 16 bits the sm_90a convolution of L2 takes multiples of 64 alone."""
    return up(channels, 64 if sm90 and unit == 8 else unit)


def padded(t: Tensor, *shape: int, value: float = 0.0) -> Tensor:
    """t, its first dimensions filled up to `shape`."""
    if t.shape[:len(shape)] == shape:
        return t
    missing = [want - have for have, want in zip(t.shape, shape)] + [0] * (t.dim() - len(shape))
    return F.pad(t, [n for m in reversed(missing) for n in (0, m)], value=value)


class Call:
    """The arguments of one op as the extension takes them; keeps what it made alive until the op has been launched."""

    def __init__(self, backend: CudaBackend, x: Tensor, level: str):
        if x.dtype not in KINDS:
            raise RuntimeError(f"backend 'cuda' takes float32, float16 and bfloat16, got {x.dtype}; convert it, or "
                               f"take the torch backend")
        self.cuda, self.device, self.given = backend.module, x.device, x.dtype
        self.dtype = LEVELS[level] if x.dtype == torch.float32 else x.dtype
        self.kind = KINDS[self.dtype]
        self.unit = 4 if self.dtype == torch.float32 else 8
        self.stream = backend.stream(x.device)
        self.sm90 = backend.uses_sm90(x.device)
        self.call = self.stream, x.dtype == torch.float32 and level == "fast", self.sm90
        self._allocate, self._kept = backend.allocate, []

    def keep(self, t: Tensor) -> Tensor:
        self._kept.append(t)
        return t

    def allocate(self, size: int) -> int:
        """What an op asks its workspace from."""
        return self.keep(self._allocate(size, self.device)).data_ptr()

    def up(self, channels: int) -> int:
        return up(channels, self.unit)

    # ---- maps: tensors (N, H, W, C), dense ----

    def tuple_of(self, t: Tensor | None):
        return None if t is None else (t.data_ptr(), *t.shape, self.kind)

    def new_map(self, like: Tensor, channels: int) -> Tensor:
        n, _, h, w = like.shape
        return torch.empty((n, h, w, self.up(channels)), dtype=self.dtype, device=self.device)

    def map(self, t: Tensor | None):
        """A map in any strides and of any type and width; converted in one pass unless it is right as it is."""
        if t is None:
            return None
        n, channels, h, w = t.shape
        if (t.dtype == self.dtype and channels % self.unit == 0 and t.is_contiguous(memory_format=CL)
                and t.data_ptr() % 16 == 0):
            return self.keep(t).data_ptr(), n, h, w, channels, self.kind
        pixels = self.tuple_of(self.keep(self.new_map(t, channels)))
        self.cuda.copy_map(self.stream, self.planes(t), pixels)
        return pixels

    def planes(self, t: Tensor):
        """A tensor (N, C, H, W) at its strides."""
        t = self.keep(t if t.dtype in KINDS else t.float())
        return t.data_ptr(), tuple(t.shape), t.stride(), KINDS[t.dtype]

    def out(self, t: Tensor | None, channels: int) -> Tensor | None:
        """A map (N, H, W, C) as the caller's (N, C, H, W)."""
        if t is None:
            return None
        width, t = t.shape[3], t.permute(0, 3, 1, 2)
        if width == channels and t.dtype == self.given:
            return t
        return t[:, :channels].to(self.given).contiguous(memory_format=CL)

    # ---- weights and vectors: most are right as they are, and a call of torch costs more than to see that ----

    def weight(self, t: Tensor, out: int | None = None, inner: int | None = None):
        out, inner = out or self.up(t.shape[0]), inner or self.up(t.shape[1])
        if t.dtype not in KINDS:
            t = t.float()
        if t.shape[:2] != (out, inner) or not t.is_contiguous():
            t = padded(t.detach(), out, inner).contiguous()
        return self.keep(t).data_ptr(), KINDS[t.dtype], out, inner

    def vector(self, t: Tensor, channels: int | None = None, value: float = 0.0) -> int:
        channels = channels or self.up(t.shape[0])
        if t.dtype != torch.float32 or t.shape[0] != channels or not t.is_contiguous():
            t = padded(t.detach().float(), channels, value=value).contiguous()
        return self.keep(t).data_ptr()

    def layer(self, weight, bias, gamma, beta, mean, var):
        weight = self.weight(weight)
        out = weight[2]
        return weight, [*(self.vector(t, out) for t in (bias, gamma, beta, mean)), self.vector(var, out, 1.0)]

    def new(self, *shape: int) -> Tensor:
        return self.keep(torch.empty(shape, dtype=torch.float32, device=self.device))

    def new_weight(self, t: Tensor) -> Tensor:
        return self.new(self.up(t.shape[0]), self.up(t.shape[1]), 3, 3)

    def new_gradient(self, weight: Tensor):
        """(weight's, gamma's, beta's, scale) of a convolution and its batch norm."""
        return self.new_weight(weight), *(self.new(self.up(weight.shape[0])) for _ in range(3))
