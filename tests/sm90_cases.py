"""Inputs, runs and judgement of the kernels for Hopper, run by the emulator.

Eager torch is what an ideal GPU computes from the same 16-bit inputs: float32 sums, the result of each step rounded to
float32, the last to the maps' type. Every output lies between sentinels and holds NaN before.
"""

from zlib import crc32

import emulator
import pytest
import torch
import torch.nn.functional as F
from kernel_cases import merge_statistics
from tolerance import assert_close_as_eager

K = emulator.load("_kernels_emulated")
TYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
GUARD = 64  # elements around every tensor
SENTINEL = -777.0


@pytest.fixture(autouse=True)
def hopper():
    K.set_device()
    yield
    K.set_device()


def guarded(shape, dtype, fill):
    size = torch.Size(shape).numel()
    memory = torch.full((size + 2 * GUARD,), fill, dtype=dtype)
    return memory[GUARD:GUARD + size].view(shape), memory


class Memory:
    """Inputs between NaNs, outputs full of NaN between sentinels; address 0 for None."""

    def __init__(self):
        self.kept, self.outputs = [], []

    def put(self, t):
        if t is None:
            return 0
        copy, memory = guarded(t.shape, t.dtype, float("nan"))
        copy.copy_(t)
        self.kept.append(memory)
        return copy.data_ptr()

    def map(self, t, kind):
        """Of a tensor (N, C, H, W), in memory as (N, H, W, C)."""
        if t is None:
            return None
        n, c, h, w = t.shape
        return self.put(t.permute(0, 2, 3, 1)), n, h, w, c, kind

    def out(self, shape, dtype=torch.float32):
        t, memory = guarded(shape, dtype, SENTINEL)
        t.fill_(float("nan"))
        self.outputs.append(memory)
        return t

    def check(self):
        for memory in self.outputs:
            around = torch.cat([memory[:GUARD], memory[-GUARD:]])
            assert (around == SENTINEL).all(), "memory around an output was written"
            assert not memory.isnan().any(), "a part of an output was not written"


def pack(memory, weight, kind, adjoint=False):
    """Weights as conv3x3_sm90 takes them."""
    out, inner = weight.shape[:2]
    packed = memory.out((K.conv3x3_sm90_bytes(out, inner) // 2,), TYPES[kind])
    source = {dtype: name for name, dtype in TYPES.items()}[weight.dtype]
    K.pack_weights_sm90(memory.put(weight), source, out, inner, adjoint, kind, packed.data_ptr())
    return packed.data_ptr(), *((inner, out) if adjoint else (out, inner)), kind


class Problem:
    """A convolution's inputs, drawn from the case's name."""

    def __init__(self, kind, shape, inner=64, out=64, adds=0, relu=False, affine=True, taps=False, stored=True,
                 mask=False, sums=False):
        n, h, w = shape
        g = torch.Generator().manual_seed(crc32(repr((kind, shape, inner, out, adds, relu, affine, taps)).encode()))

        def draw(*size):
            return torch.randn(*size, generator=g)

        self.kind, self.shape, self.relu, self.stored, self.sums = kind, shape, relu, stored, sums
        self.x = draw(n, inner, h, w).to(TYPES[kind])
        self.weight = draw(out, inner, 3, 3) / (3 * inner ** 0.5)
        self.scale = draw(out) if affine else None
        self.shift = draw(out) if affine else None
        self.adds = [draw(n, out, h, w).to(TYPES[kind]) for _ in range(adds)]
        self.tap_weights = draw(9, out) / out ** 0.5 if taps else None
        self.mask = draw(n, out, h, w).relu().to(TYPES[kind]) if mask else None

    def expected(self, dtype):
        """(y, tap planes, sums by row, strip and channel) with sums in `dtype`: exact where that is float64, else with
        y and tap weights rounded to the maps' type."""
        weight = self.weight.to(TYPES[self.kind]).to(dtype)
        y = F.conv2d(self.x.to(dtype), weight, padding=1)
        if self.scale is not None:
            y = y * self.scale.to(dtype)[:, None, None] + self.shift.to(dtype)[:, None, None]
        if self.relu:
            y = y.relu()
        for add in self.adds:
            y = y + add.to(dtype)
        if self.mask is not None:
            y = torch.where(self.mask > 0, y, 0)
        rounded = torch.float64 if dtype == torch.float64 else TYPES[self.kind]
        y = y.to(rounded)
        n, out, h, w = y.shape
        taps = sums = None
        if self.tap_weights is not None:
            parts, weights = y.to(dtype).view(n, out // 64, 64, h, w), self.tap_weights.to(rounded).to(dtype)
            taps = torch.einsum("ncihw,tci->ctnhw", parts, weights.view(9, -1, 64))
        if self.sums:
            strips = [strip.to(dtype).sum(3) for strip in y.split(128, 3)]  # (n, out, h) each
            sums = torch.stack(strips, 3).permute(0, 2, 3, 1).flatten(0, 2)
        return y, taps, sums

    def run(self, swapped_adds=False):
        m = Memory()
        n, h, w = self.shape
        out = self.weight.shape[0]
        y = m.out((n, h, w, out), TYPES[self.kind]) if self.stored else None
        taps = m.out((out // 64, 9, n, h, w)) if self.tap_weights is not None else None
        epilogue = {"scale": m.put(self.scale), "shift": m.put(self.shift), "relu": self.relu,
                    "tap_weights": m.put(self.tap_weights)}
        if y is not None:
            epilogue["y"] = (y.data_ptr(), n, h, w, out, self.kind)
        if taps is not None:
            epilogue["taps"] = taps.data_ptr()
        sums = None
        if self.sums:
            sums = m.out((n * h * -(-w // 128), 2, out))
            sums[:, 1] = 0  # the second row is not written
            epilogue.update(sums="total", partial=sums.data_ptr())
        if self.mask is not None:
            epilogue["mask"] = m.map(self.mask, self.kind)
        names = ("add1", "add0") if swapped_adds else ("add0", "add1")
        for name, add in zip(names, self.adds):
            epilogue[name] = m.map(add, self.kind)
        source = {"x": m.map(self.x, self.kind)}
        assert K.conv3x3_sm90_takes(source, out, epilogue)
        K.conv3x3_sm90(source, pack(m, self.weight, self.kind), epilogue)
        m.check()
        return [t for t in (y, taps, sums) if t is not None]

    def check(self, **how):
        results = self.run(**how)
        ours = iter(results)
        eager, exact = self.expected(torch.float32), self.expected(torch.float64)
        if self.stored:
            assert_close_as_eager("y", next(ours).permute(0, 3, 1, 2), eager[0], exact[0])
        if self.tap_weights is not None:
            assert_close_as_eager("taps", next(ours), eager[1], exact[1])
        if self.sums:
            assert_close_as_eager("sums", next(ours)[:, 0], eager[2], exact[2])
        return results


class TrainingProblem(Problem):
    """With a mask, or sums, or both: what the data gradient of a block and a layer with batch statistics ask for."""

    def __init__(self, kind, shape, sums, mask=None, out=64):
        super().__init__(kind, shape, out=out, affine=False)
        g = torch.Generator().manual_seed(crc32(repr((kind, shape, sums, mask, out)).encode()))
        n, h, w = shape
        self.wanted, self.masking = sums, mask
        self.z = torch.randn(n, out, h, w, generator=g).to(TYPES[kind]) if mask else None
        if mask == "plain":
            self.z = self.z.relu()  # half of it is exactly zero
        self.vectors = [1 + 0.2 * torch.randn(out, generator=g), 0.3 * torch.randn(out, generator=g),
                        1 + 0.2 * torch.randn(out, generator=g), 3 * torch.randn(out, generator=g)]

    def masked(self, y):
        if not self.masking:
            return y
        compute = torch.promote_types(y.dtype, torch.float32)
        z = self.z.to(compute)
        if self.masking == "normalised":
            scale, shift = (v.to(compute)[:, None, None] for v in self.vectors[:2])
            z = z * scale + shift
        return torch.where(z > 0, y, 0)

    def run(self):
        m = Memory()
        n, h, w = self.shape
        out = self.weight.shape[0]
        y = m.out((n, h, w, out), TYPES[self.kind])
        epilogue = {"y": (y.data_ptr(), n, h, w, out, self.kind), "sums": self.wanted}
        if self.masking:
            epilogue["mask"] = epilogue["norm_z"] = m.map(self.z, self.kind)
            for name, vector in zip(("mask_scale", "mask_shift", "norm_scale", "norm_shift"), self.vectors):
                if name.startswith("norm") or self.masking == "normalised":
                    epilogue[name] = m.put(vector)
        partial = m.out((n * h * -(-w // 128), 2, out)) if self.wanted else None
        if self.wanted:
            epilogue["partial"] = partial.data_ptr()
        source = {"x": m.map(self.x, self.kind)}
        assert K.conv3x3_sm90_takes(source, out, epilogue)
        K.conv3x3_sm90(source, pack(m, self.weight, self.kind), epilogue)
        m.check()
        return y, partial

    def check(self):
        y, partial = self.run()
        n, h, w = self.shape
        out = self.weight.shape[0]
        exact, eager = (self.masked(self.expected(t)[0]) for t in (torch.float64, torch.float32))
        assert_close_as_eager("y", y.permute(0, 3, 1, 2), eager.to(TYPES[self.kind]), exact)
        if not self.wanted:
            return
        m = Memory()
        if self.wanted == "statistics":
            first, second, *_ = merge_statistics(m, partial, (n, h, w, out), torch.ones(out), torch.zeros(out),
                                                 by_rows=True)
            m.check()
            stored = eager.to(TYPES[self.kind])  # eager's batch norm reads what the convolution stored
            for name, got, of in (("mean", first, lambda t: t.mean((0, 2, 3))),
                                  ("var", second, lambda t: t.var((0, 2, 3), unbiased=False))):
                assert_close_as_eager(name, got.to(TYPES[self.kind]), of(stored.float()).to(TYPES[self.kind]), of(exact),
                                      scale=1.0)
            return
        first, second = m.out((out,)), m.out((out,))
        K.merge_sums(partial.data_ptr(), len(partial), out, first.data_ptr(), second.data_ptr())
        m.check()
        kept, scale = y.permute(0, 3, 1, 2), float(n * h * w) ** 0.5  # the sums are of what was stored
        for dtype, results in ((torch.float64, []), (torch.float32, [])):
            v = kept.to(dtype)
            xhat = self.z.to(dtype) * self.vectors[2].to(dtype)[:, None, None] + self.vectors[3].to(dtype)[:, None, None]
            results += [v.sum((0, 2, 3)), (v * xhat).sum((0, 2, 3))]
            if dtype == torch.float64:
                exact_sums = results
        assert_close_as_eager("sum", first, results[0], exact_sums[0], scale=scale)
        if self.wanted == "normalised":
            assert_close_as_eager("sum of products", second, results[1], exact_sums[1], scale=scale)


KINDS = ("f16", "bf16")
