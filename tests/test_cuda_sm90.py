"""The kernels for Hopper (wgmma, tensor copies, clusters), run by the emulator and judged against float64.

Eager torch is what an ideal GPU computes from the same 16-bit inputs: float32 sums, the result of each step rounded to
float32, the last to the maps' type; tap planes are products of that last result and of tap weights rounded alike. Every
output lies between sentinels and holds NaN before.
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
        """(y, tap planes, sums by strip, row and channel) with sums in `dtype`: exact where that is float64, else with
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
            rows = [strip.to(dtype).sum(3) for strip in y.split(128, 3)]
            sums = torch.stack(rows, 1).transpose(2, 3).flatten(0, 2)
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
SIZES = ((1, 1, 1), (3, 1, 7), (1, 3, 5), (1, 5, 300))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SIZES)
def test_sizes(kind, shape):
    Problem(kind, shape).check()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adds", (0, 1, 2))
def test_epilogue(kind, adds):
    Problem(kind, (2, 3, 5), adds=adds, relu=True).check()


def test_epilogue_without_scale():
    Problem("f16", (1, 2, 9), affine=False, relu=True).check()


def test_second_residual_alone():
    Problem("bf16", (1, 2, 9), adds=1).check(swapped_adds=True)


@pytest.mark.parametrize("kind, shape, adds", (("f16", (1, 37, 53), 1), ("f16", (2, 19, 6), 0),
                                              ("bf16", (1, 129, 131), 0)))
def test_long_walk(kind, shape, adds):
    """The ring goes round many times, blocks' shares begin and end within strips."""
    Problem(kind, shape, adds=adds, relu=True).check()


@pytest.mark.parametrize("multiprocessors", (1, 2, 3, 7, 132))
def test_shares(multiprocessors):
    """Any number of blocks gives the same bits."""
    problem = Problem("f16", (3, 4, 140), adds=1)
    expected = problem.run()[0]
    K.set_device(multiprocessors=multiprocessors)
    assert torch.equal(problem.check()[0], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_more_out_channels(kind):
    Problem(kind, (2, 5, 7), out=256, relu=True).check()
    Problem(kind, (1, 2, 3), out=128, adds=1).check()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", (1, 2, 4))
def test_clusters(kind, size):
    """However many blocks share a row's arrival: the same bits. Twice round the ring, and the end of a strip within."""
    problem = Problem(kind, (2, 7, 9), out=256, relu=True)
    K.set_device(multiprocessors=4, group=1)
    alone = problem.run()[0]
    K.set_device(multiprocessors=4, group=size)
    assert torch.equal(problem.check()[0], alone)
    problem = Problem(kind, (1, 2, 130), out=256, adds=1)
    problem.check()


@pytest.mark.parametrize("multiprocessors, group, grid", (
    (132, 132, (132, 4)), (132, 16, (132, 4)), (132, 18, (132, 2)), (7, 7, (4, 4)), (3, 3, (4, 1)), (1, 1, (4, 1))))
def test_as_many_blocks_as_run_at_once(multiprocessors, group, grid):
    """A cluster needs its multiprocessors in one group; a size that would leave more of them idle is not taken."""
    K.set_device(multiprocessors=multiprocessors, group=group)
    Problem("f16", (40, 1, 3), out=256).check()
    assert K.last_grid() == grid


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ((1, 1, 1), (1, 5, 7)))
def test_deep_with_taps(kind, shape):
    Problem(kind, shape, inner=256, out=256, relu=True, taps=True).check()


def test_deep_taps_alone():
    Problem("bf16", (1, 3, 130), inner=128, out=128, relu=True, taps=True, stored=False).check()


def test_deep_map_alone():
    Problem("f16", (3, 6, 9), inner=128, out=128).check()


def test_deep_long_walk():
    """One cluster for all, or two blocks by themselves: both rings go round many times."""
    for group in (1, 2):
        K.set_device(multiprocessors=2, group=group)
        Problem("f16", (1, 17, 131), inner=64, out=128, taps=True, relu=True).check()
        assert K.last_grid() == (2, group)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ((1, 1, 1), (2, 5, 7)))
def test_deep_mask_and_sums(kind, shape):
    """As the data gradient of a ReLU's output asks; rows of the last tile lie below the picture."""
    Problem(kind, shape, inner=256, out=256, affine=False, mask=True, sums=True).check()


def test_deep_mask_of_many_tiles():
    """Several tiles a block, a strip that ends in the middle of a tile's columns; the mask alone."""
    K.set_device(multiprocessors=1)
    Problem("f16", (1, 13, 131), inner=128, out=128, affine=False, mask=True, sums=True).check()
    Problem("bf16", (2, 6, 9), inner=128, out=128, relu=True, mask=True).check()


def test_deep_infinity_passes_only_where_the_mask_keeps():
    problem = Problem("f16", (1, 5, 6), inner=128, out=128, affine=False, mask=True)
    problem.x[0, 5, 2, 3] = float("inf")
    problem.mask[0, 7, 2, 2] = float("nan")
    y = problem.run()[0].permute(0, 3, 1, 2)
    expected = problem.expected(torch.float32)[0]
    assert expected.isinf().any() and torch.equal(y.isinf(), expected.isinf()) and not y[0, 7, 2, 2].isinf()


def test_same_bits_whatever_the_order_of_threads():
    small = Problem("bf16", (2, 7, 9), adds=2, relu=True)
    deep = Problem("f16", (1, 5, 9), inner=64, out=128, taps=True)
    masked = Problem("bf16", (1, 5, 9), inner=128, out=128, mask=True, sums=True)
    first = [*small.run(), *deep.run(), *masked.run()]
    for seed in (1, 2, 3):
        K.set_seed(seed)
        again = [*small.run(), *deep.run(), *masked.run()]
        assert all(torch.equal(a, b) for a, b in zip(first, again))


TRAINING = (("statistics", None), ("normalised", "normalised"), ("total", "plain"), ("", "normalised"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sums, mask", TRAINING)
@pytest.mark.parametrize("shape", ((1, 1, 1), (2, 3, 5), (1, 37, 53), (3, 2, 131)))
def test_training(kind, sums, mask, shape):
    TrainingProblem(kind, shape, sums, mask).check()


@pytest.mark.parametrize("sums, mask", TRAINING)
def test_training_has_the_same_bits_for_any_number_of_blocks(sums, mask):
    problem = TrainingProblem("bf16", (3, 4, 140), sums, mask, out=128)
    expected = problem.run()
    for multiprocessors in (1, 2, 3, 7):
        K.set_device(multiprocessors=multiprocessors)
        K.set_seed(multiprocessors)
        assert all(a is b or torch.equal(a, b) for a, b in zip(problem.run(), expected))
    problem.check()


@pytest.mark.parametrize("kind", KINDS)
def test_adjoint_weights(kind):
    """Those of the data gradient: channels change places, taps are reversed."""
    weight = torch.randn(128, 64, 3, 3, generator=torch.Generator().manual_seed(5))
    m, other = Memory(), Memory()
    pack(m, weight, kind, adjoint=True)
    pack(other, weight.transpose(0, 1).flip(2, 3).contiguous(), kind)
    m.check()
    assert torch.equal(m.outputs[0], other.outputs[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", tuple(TYPES))
def test_packed_weights(kind, source):
    """Fragment by fragment as the PTX manual lays A out."""
    weight = torch.randn(128, 192, 3, 3, generator=torch.Generator().manual_seed(4)).to(TYPES[source])
    m = Memory()
    pack(m, weight, kind)
    packed = m.outputs[0][GUARD:-GUARD].view(2, 3, 9, 4, 4, 8, 4, 2, 2, 2)
    m.check()
    # out: chunk, warp, row + 8, row; in: chunk, step, column + 8, column pair, column
    split = weight.to(TYPES[kind]).view(2, 4, 2, 8, 3, 4, 2, 4, 2, 9)
    assert torch.equal(packed, split.permute(0, 4, 9, 5, 1, 3, 7, 6, 2, 8))


def test_takes():
    def takes(x=64, out=64, kind="f16", source=None, **epilogue):
        given = {"x": (64, 1, 4, 4, x, kind), **(source or {})}
        return K.conv3x3_sm90_takes(given, out, {"y": (64, 1, 4, 4, out, kind), **epilogue})

    residual = (64, 1, 4, 4, 64, "f16")
    assert takes() and takes(out=256) and takes(x=256, out=256, taps=64, tap_weights=64) and takes(kind="bf16")
    assert takes(add0=residual, add1=residual) and takes(add1=residual)
    assert not takes(kind="f32")
    assert not takes(x=48) and not takes(x=0) and not takes(out=32) and not takes(out=0)
    assert not takes(source={"scale": 64, "shift": 64}) and not takes(source={"relu": True})
    assert takes(mask=residual) and takes(sums="statistics") and takes(mask=residual, sums="total")
    assert takes(mask=residual, norm_z=residual, sums="normalised")
    assert not takes(sums="total") and not takes(mask=residual, sums="statistics")
    assert not takes(mask=residual, norm_z=(128, *residual[1:]), sums="normalised")
    assert not takes(mask=residual, add0=residual) and not takes(sums="statistics", scale=64)
    deep = dict(x=128, out=128, mask=(64, 1, 4, 4, 128, "f16"))
    assert takes(**deep) and takes(**deep, sums="total")
    assert not takes(x=128, out=128, sums="total") and not takes(x=128, out=128, sums="statistics")
    assert not takes(**deep, norm_z=deep["mask"], sums="normalised") and not takes(**deep, mask_scale=64, mask_shift=64)
    assert not takes(**deep, y=None, taps=64, tap_weights=64)
    assert not takes(x=128, out=64) and not takes(x=128, out=192) and not takes(taps=64, tap_weights=64)
    assert not takes(x=256, out=64, add0=residual) and not takes(add0=residual, taps=64, tap_weights=64)
    assert not takes(y=None) and not takes(add0=residual, y=None)


def test_refusals():
    problem = Problem("f16", (1, 2, 3))
    for major, minor in ((8, 0), (8, 9), (9, 1), (10, 0), (12, 0)):
        K.set_device(major=major, minor=minor)
        with pytest.raises(RuntimeError, match="compute capability"):
            problem.run()
    K.set_device()
    m = Memory()
    y = m.out((1, 2, 3, 64), torch.float16)
    source = {"x": m.map(problem.x, "f16")}
    weights = pack(m, problem.weight, "f16")
    for h, kind, what in ((3, "f16", "y must have"), (2, "bf16", "y must have")):
        with pytest.raises(ValueError, match=what):
            K.conv3x3_sm90(source, weights, {"y": (y.data_ptr(), 1, h, 3, 64, kind)})
    with pytest.raises(ValueError, match="weights' type"):
        K.conv3x3_sm90(source, (*weights[:3], "bf16"), {"y": (y.data_ptr(), 1, 2, 3, 64, "f16")})
    deep_source, deep_weights = {"x": (64, 1, 2, 3, 128, "f16")}, (64, 128, 128, "f16")
    masked = {"y": (64, 1, 2, 3, 128, "f16"), "mask": (64, 1, 2, 3, 128, "f16"), "sums": "total"}
    with pytest.raises(ValueError, match="sums need a place"):
        K.conv3x3_sm90(deep_source, deep_weights, masked)
    with pytest.raises(ValueError, match="what masks must"):
        K.conv3x3_sm90(deep_source, deep_weights, {**masked, "mask": (64, 1, 3, 3, 128, "f16"), "partial": 64})
    with pytest.raises(ValueError, match="takes"):
        K.conv3x3_sm90(source, weights, {})
    with pytest.raises(ValueError, match="multiples of 64"):
        K.pack_weights_sm90(0, "f32", 48, 64, False, "f16", 0)


def test_nan_and_infinity_pass_through():
    problem = Problem("f16", (1, 4, 6), relu=True)
    problem.x[0, 5, 1, 2] = float("nan")
    problem.x[0, 5, 3, 5] = float("inf")
    m = Memory()
    y = torch.empty(1, 4, 6, 64, dtype=torch.float16)
    K.conv3x3_sm90({"x": m.map(problem.x, "f16")}, pack(m, problem.weight, "f16"),
                   {"y": (y.data_ptr(), 1, 4, 6, 64, "f16"), "relu": True})
    expected = F.conv2d(problem.x.float(), problem.weight.half().float(), padding=1).relu().half()
    assert torch.equal(y.permute(0, 3, 1, 2).isnan(), expected.isnan())
    assert torch.equal(y.permute(0, 3, 1, 2).isinf(), expected.isinf())


# ---- weight gradient ----

class Gradient:
    """dw and what it is made of: shape n, h, w, out, in."""

    def __init__(self, kind, *shape):
        n, h, w, out, inner = shape
        g = torch.Generator().manual_seed(crc32(repr((kind, shape)).encode()))
        self.kind, self.shape = kind, shape
        self.x, self.dy = (torch.randn(n, c, h, w, generator=g).to(TYPES[kind]) for c in (inner, out))

    def run(self, **blocks):
        n, h, w, out, inner = self.shape
        m = Memory()
        x, dy = m.map(self.x, self.kind), m.map(self.dy, self.kind)
        assert K.weight_gradient_sm90_takes(x, dy)
        dw = m.out((out, inner, 3, 3))
        partial = m.out((K.weight_gradient_sm90_partial_floats(self.shape, **blocks),))
        K.weight_gradient_sm90(x, dy, dw.data_ptr(), partial.data_ptr(), **blocks)
        m.check()
        return dw

    def expected(self, dtype, mirrored):
        x, dy = self.x.to(dtype), self.dy.to(dtype)
        if mirrored:
            x, dy = x.flip(0, 2, 3), dy.flip(0, 2, 3)
        dw = torch.nn.grad.conv2d_weight(x, (*self.shape[3:], 3, 3), dy, padding=1)
        return dw.flip(2, 3) if mirrored else dw

    def check(self, **blocks):
        """It is judged as its caller passes it on, rounded to the maps' type."""
        dw, dtype = self.run(**blocks), TYPES[self.kind]
        eager = [self.expected(torch.float32, mirrored).to(dtype) for mirrored in (False, True)]
        assert_close_as_eager("dw", dw.to(dtype), eager, self.expected(torch.float64, False))
        return dw


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ((1, 1, 1, 64, 64), (3, 1, 7, 64, 64), (1, 3, 5, 256, 64), (1, 3, 5, 64, 256),
                                  (2, 9, 131, 64, 64), (1, 37, 53, 64, 64)), ids=lambda s: "x".join(map(str, s)))
def test_weight_gradient(kind, shape):
    Gradient(kind, *shape).check()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape, blocks", (((1, 25, 9, 64, 64), 1), ((3, 5, 259, 64, 64), 2), ((2, 7, 5, 128, 192), 7)))
def test_weight_gradient_in_few_blocks(kind, shape, blocks):
    """Both rings go round, and a block goes on into other strips and pictures."""
    Gradient(kind, *shape).check(blocks=blocks)


def test_weight_gradient_same_bits_whatever_the_order_of_threads():
    problem = Gradient("f16", 2, 9, 131, 64, 64)
    first = problem.run(blocks=3)
    for seed in (1, 2, 3):
        K.set_seed(seed)
        K.set_device(multiprocessors=seed)  # nor by what the device is
        assert torch.equal(problem.run(blocks=3), first)


def test_partial_sums_of_the_weight_gradient_do_not_grow_with_the_picture():
    block = 9 * 64 * 64
    for shape, blocks in (((1, 1, 1, 64, 64), 1), ((1, 5, 129, 64, 64), 10), ((4, 128, 128, 64, 64), 128),
                          ((1, 720, 1280, 256, 64), 32 * 4), ((1, 720, 1280, 1024, 1024), 256)):
        assert K.weight_gradient_sm90_partial_floats(shape) == blocks * block


def test_maps_whose_weight_gradient_is_taken():
    def takes(x=(1, 4, 4, 64, "f16"), dy=(1, 4, 4, 64, "f16")):
        return K.weight_gradient_sm90_takes((64, *x), (64, *dy))

    assert takes() and takes(dy=(1, 4, 4, 256, "f16")) and takes(x=(1, 4, 4, 192, "f16"))
    assert takes((1, 4, 4, 64, "bf16"), (1, 4, 4, 64, "bf16"))
    assert not takes((1, 4, 4, 64, "f32"), (1, 4, 4, 64, "f32")) and not takes(dy=(1, 4, 4, 64, "bf16"))
    assert not takes(x=(1, 4, 4, 48, "f16")) and not takes(dy=(1, 4, 4, 72, "f16"))
    assert not takes(dy=(1, 4, 5, 64, "f16"))
    assert not takes((0, 4, 4, 64, "f16"), (0, 4, 4, 64, "f16"))


def test_refusals_of_the_weight_gradient():
    m = Memory()
    x, dy = (m.map(torch.zeros(1, c, 2, 2, dtype=torch.float16), "f16") for c in (64, 72))
    with pytest.raises(ValueError, match="takes"):
        K.weight_gradient_sm90(x, dy, 0, 0)
    K.set_device(major=10)
    with pytest.raises(RuntimeError, match="9.0 alone"):
        K.weight_gradient_sm90(x, x, 0, 0)
