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
    if all(have == want for have, want in zip(t.shape, shape)):
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
        pixels = t.detach().permute(0, 2, 3, 1)
        if not (t.dtype == self.dtype and t.shape[1] % self.unit == 0 and pixels.is_contiguous()
                and t.data_ptr() % 16 == 0):
            pixels = self.new_map(t, t.shape[1])
            self.cuda.copy_map(self.stream, self.planes(t), self.tuple_of(pixels))
        return self.tuple_of(self.keep(pixels))

    def planes(self, t: Tensor):
        """A tensor (N, C, H, W) at its strides."""
        t = self.keep(t if t.dtype in KINDS else t.float())
        return t.data_ptr(), tuple(t.shape), t.stride(), KINDS[t.dtype]

    def out(self, t: Tensor | None, channels: int) -> Tensor | None:
        """A map (N, H, W, C) as the caller's (N, C, H, W)."""
        if t is None:
            return None
        t = t.permute(0, 3, 1, 2)
        return t[:, :channels].to(self.given).contiguous(memory_format=CL)

    # ---- weights and vectors ----

    def weight(self, t: Tensor, out: int | None = None, inner: int | None = None):
        out, inner = out or self.up(t.shape[0]), inner or self.up(t.shape[1])
        t = t if t.dtype in KINDS else t.float()
        t = self.keep(padded(t.detach(), out, inner).contiguous())
        return t.data_ptr(), KINDS[t.dtype], out, inner

    def vector(self, t: Tensor, channels: int | None = None, value: float = 0.0) -> int:
        t = padded(t.detach().float(), channels or self.up(t.shape[0]), value=value)
        return self.keep(t.contiguous()).data_ptr()

    def layer(self, weight, bias, gamma, beta, mean, var):
        return self.weight(weight), [*map(self.vector, (bias, gamma, beta, mean)), self.vector(var, value=1.0)]

    def new(self, *shape: int) -> Tensor:
        return self.keep(torch.empty(shape, dtype=torch.float32, device=self.device))

    def new_weight(self, t: Tensor) -> Tensor:
        return self.new(self.up(t.shape[0]), self.up(t.shape[1]), 3, 3)

    def new_gradient(self, weight: Tensor):
        """(weight's, gamma's, beta's, scale) of a convolution and its batch norm."""
        return self.new_weight(weight), *(self.new(self.up(weight.shape[0])) for _ in range(3))
