"""What the tests of the raw CUDA kernels share: guarded memory, and how a result is judged against float64.

A test states its formula once, as a function of an arithmetic `a`. It is run in float64 and as eager torch would on an
ideal GPU: from the same inputs, with float32 sums, each result rounded to the maps' type where the formula says
`a.rounded`. Eager is run twice, the second time with its sums in another order (`a.mirrored`); the larger error counts.
"""

from zlib import crc32

import emulator
import torch
import torch.nn.functional as F
from tolerance import assert_close_as_eager

K = emulator.load("_kernels_emulated")
TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32}
NAMES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
KINDS = ("f16", "bf16", "f32")
MODES = (*KINDS, "tf32")
GUARD = 64  # elements around every tensor
SENTINEL = -777.0


def generator(*name):
    return torch.Generator().manual_seed(crc32(repr(name).encode()))


def products(mode):
    return "tf32" if mode == "tf32" else "exact"


def per_channel(v):
    return v[:, None, None]


def to_tf32(t):
    """Rounded to nearest, ties away from zero."""
    return ((t.contiguous().view(torch.int32) + 0x1000) & ~0x1fff).view(torch.float32)


class Memory:
    """Inputs between NaNs, outputs full of NaN between sentinels; address 0 (or no map) for None."""

    def __init__(self):
        self.kept, self.outputs = [], []

    @staticmethod
    def guarded(shape, dtype, fill):
        size = torch.Size(shape).numel()
        memory = torch.full((size + 2 * GUARD,), fill, dtype=dtype)
        return memory[GUARD:GUARD + size].view(shape), memory

    def put(self, t):
        if t is None:
            return 0
        copy, memory = self.guarded(t.shape, t.dtype, float("nan"))
        copy.copy_(t)
        self.kept.append(memory)
        return copy.data_ptr()

    def map(self, t):
        """Of a tensor (N, C, H, W), in memory as (N, H, W, C)."""
        if t is None:
            return None
        n, c, h, w = t.shape
        return self.put(t.permute(0, 2, 3, 1)), n, h, w, c, NAMES[t.dtype]

    def out(self, shape, dtype=torch.float32):
        t, memory = self.guarded(shape, dtype, SENTINEL)
        t.fill_(float("nan"))
        self.outputs.append(memory)
        return t

    def out_map(self, n, h, w, c, dtype):
        t = self.out((n, h, w, c), dtype)
        return t, (t.data_ptr(), n, h, w, c, NAMES[dtype])

    def check(self):
        for memory in self.outputs:
            around = torch.cat([memory[:GUARD], memory[-GUARD:]])
            assert (around == SENTINEL).all(), "memory around an output was written"
            assert not memory.isnan().any(), "a part of an output was not written"


EPS = 1e-5


def merge_statistics(memory, partial, shape, gamma, beta, by_rows=False):
    """mean, var, scale, shift, invstd, offset of a map (n, h, w, c) from the statistics of its tiles."""
    to = [memory.out((shape[3],)) for _ in range(6)]
    K.merge_statistics(partial.data_ptr(), shape, (memory.put(gamma), memory.put(beta)), EPS,
                       [t.data_ptr() for t in to], by_rows)
    return to


class Arithmetic:
    """mode None: float64. Else eager's, with sums in the other order if `mirrored`."""

    def __init__(self, mode=None, mirrored=False):
        self.mode, self.mirrored = mode, mirrored
        self.type = torch.float32 if mode else torch.float64

    def of(self, t):
        return t.to(self.type)

    def rounded(self, t):
        return t.to(TYPES[self.mode]).to(self.type) if self.mode else t

    def conv(self, x, weight):
        if self.mode == "tf32":
            x, weight = to_tf32(x), to_tf32(weight)
        if self.mirrored:
            return F.conv2d(x.flip(1, 2, 3), weight.flip(1, 2, 3), padding=1).flip(2, 3)
        return F.conv2d(x, weight, padding=1)


def judge(name, ours, formula, mode, dtype=torch.float32, scale=None):
    """`ours`, of `dtype`, against `formula` in float64 by the rule of tolerance.py."""
    exact = formula(Arithmetic())
    runs = [formula(Arithmetic(mode, mirrored)).to(dtype) for mirrored in (False, True)]
    eager = max(runs, key=lambda t: (t.double() - exact).abs().max().item() if t.numel() else 0.0)
    assert ours.dtype == dtype, name
    assert_close_as_eager(f"{name} {mode}", ours, eager, exact, scale)
