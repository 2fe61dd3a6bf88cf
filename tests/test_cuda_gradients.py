"""Weight gradient, stem and the edges of the last convolution (CUDA), run by the emulator and judged against float64.

Eager torch is what an ideal GPU computes from the same inputs, as in kernel_cases.py. A weight gradient is float32
whatever the maps' type; it is judged as its caller passes it on, rounded to that type.
"""

import pytest
import torch
from kernel_cases import (KINDS, MODES, NAMES, TYPES, K, Memory, generator, judge, per_channel, products, to_tf32)


def random(g, *shape, std=1.0, mean=0.0, dtype=torch.float32):
    return (torch.randn(shape, generator=g) * std + mean).to(dtype)


def seeded(seed):
    """The order of threads and blocks from now on."""
    K.set_seed(seed)


# ---- weight gradient ----

class WeightGradient:
    def __init__(self, mode, n, h, w, out, inner, prologue=None):
        g = generator("weight gradient", mode, n, h, w, out, inner, prologue)
        self.mode, self.dtype, self.prologue = mode, TYPES[mode], prologue
        self.shape = n, h, w, out, inner
        self.x, self.dy = random(g, n, inner, h, w, dtype=self.dtype), random(g, n, out, h, w, dtype=self.dtype)
        self.scale, self.shift = random(g, inner, mean=1, std=0.2), random(g, inner, std=0.3)

    def run(self):
        n, h, w, out, inner = self.shape
        memory = Memory()
        dw = memory.out((out, inner, 3, 3))
        partial = memory.out((K.weight_gradient_partial_floats(n, h, w, out, inner),))
        norm = [memory.put(t) if self.prologue else 0 for t in (self.scale, self.shift)]
        K.weight_gradient(memory.map(self.x), *norm, self.prologue == "relu", memory.map(self.dy), dw.data_ptr(),
                          partial.data_ptr(), products(self.mode))
        memory.check()
        return dw

    def formula(self, a):
        x, dy = a.of(self.x), a.of(self.dy)
        if self.prologue:
            x = a.rounded(x * per_channel(a.of(self.scale)) + per_channel(a.of(self.shift)))
        if self.prologue == "relu":
            x = x.relu()
        if a.mode == "tf32":
            x, dy = to_tf32(x), to_tf32(dy)
        if a.mirrored:
            x, dy = x.flip(0, 2, 3), dy.flip(0, 2, 3)
        _, _, _, out, inner = self.shape
        dw = torch.nn.grad.conv2d_weight(x, (out, inner, 3, 3), dy, padding=1)
        return dw.flip(2, 3) if a.mirrored else dw

    def check(self):
        judge("dw", self.run().to(self.dtype), self.formula, self.mode, self.dtype)


GRADIENT_SHAPES = [(1, 1, 1, 64, 64), (3, 1, 7, 64, 64), (1, 3, 5, 256, 64), (1, 37, 53, 64, 48), (3, 3, 5, 8, 24),
                   (3, 9, 17, 40, 72)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", GRADIENT_SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_weight_gradient(mode, shape):
    WeightGradient(mode, *shape).check()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prologue", ("norm", "relu"))
def test_weight_gradient_of_a_normalised_source(mode, prologue):
    WeightGradient(mode, 2, 9, 17, 24, 72, prologue).check()


@pytest.mark.parametrize("mode", ("f16", "f32"))
def test_blocks_that_walk_over_many_tiles(mode):
    """Four pairs of chunks and 28 tiles: 14 partial sums of two tiles each (four half tiles of float32)."""
    WeightGradient(mode, 1, 25, 101, 72, 72, "relu").check()


def test_partial_sums_do_not_grow_with_the_picture():
    block = 9 * 64 * 64
    assert K.weight_gradient_partial_floats(1, 8, 16, 64, 64) == block
    assert K.weight_gradient_partial_floats(4, 128, 128, 64, 64) == 103 * block  # 512 tiles, five each
    assert K.weight_gradient_partial_floats(64, 720, 1280, 64, 64) <= 108 * block
    assert K.weight_gradient_partial_floats(1, 720, 1280, 1024, 1024) == 256 * block


@pytest.mark.parametrize("mode", MODES)
def test_weight_gradient_same_bits_twice(mode):
    case = WeightGradient(mode, 2, 17, 33, 64, 24, "relu")
    seeded(1)
    first = case.run()
    seeded(20241)
    assert torch.equal(first, case.run())


def test_weight_gradient_refusals():
    memory = Memory()
    x, y = (memory.map(torch.zeros(1, c, 2, 2, dtype=torch.float16)) for c in (8, 12))
    with pytest.raises(ValueError, match="16 bytes"):
        K.weight_gradient(x, 0, 0, False, y, 0, 0, "exact")
    with pytest.raises(ValueError, match="type and size"):
        K.weight_gradient(x, 0, 0, False, memory.map(torch.zeros(1, 8, 2, 3, dtype=torch.float16)), 0, 0, "exact")


# ---- stem ----

class Stem:
    def __init__(self, mode, n, h, w, frames, channels, x_dtype=None, more=0):
        g = generator("stem", mode, n, h, w, frames, channels)
        self.mode, self.dtype, self.shape = mode, TYPES[mode], (n, h, w, frames, channels)
        # Rows of a wider picture, frames before pictures: no dimension is dense; NaN lies between.
        self.x = torch.full((frames, n, h, w + 3), float("nan"), dtype=x_dtype or self.dtype).transpose(0, 1)[..., 2:-1]
        self.x.copy_(random(g, n, frames, h, w))
        self.weight = random(g, channels, frames, 3, 3, std=(2 / (9 * frames)) ** 0.5, dtype=self.dtype)
        self.bias = random(g, channels, std=0.3, mean=0.3)
        self.more = more  # frames that weights have and x has not

    def packed(self, weight, kind):
        _, _, _, frames, channels = self.shape
        memory = Memory()
        to = memory.out((K.stem_bytes(frames, channels, kind) // TYPES[kind].itemsize,), TYPES[kind])
        weight = torch.nn.functional.pad(weight, (0, 0, 0, 0, 0, self.more), value=float("nan"))
        sizes = frames + self.more, frames, channels
        K.pack_stem(memory.put(weight), NAMES[weight.dtype], sizes, kind, to.data_ptr())
        memory.check()
        return to

    def run(self, check=True):
        n, h, w, _, channels = self.shape
        memory, packed = Memory(), self.packed(self.weight, NAMES[self.dtype])
        y, y_map = memory.out_map(n, h, w, channels, self.dtype)
        K.stem(self.x.data_ptr(), tuple(self.x.shape), self.x.stride(), NAMES[self.x.dtype], packed.data_ptr(),
               memory.put(self.bias), channels, y_map, products(self.mode))
        if check:
            memory.check()
        return y.permute(0, 3, 1, 2)

    def formula(self, a):
        x = a.of(self.x.to(self.dtype))
        return a.rounded(a.conv(x, a.of(self.weight)) + per_channel(a.of(self.bias))).relu()

    def check(self):
        judge("y", self.run(), self.formula, self.mode, self.dtype)


STEMS = [(1, 1, 1, 5, 48), (3, 1, 7, 5, 64), (1, 37, 83, 5, 48), (3, 3, 5, 3, 16), (1, 9, 17, 7, 80),
         (1, 9, 17, 11, 144), (2, 17, 33, 5, 16), (1, 3, 19, 1, 24), (1, 2, 9, 32, 8), (1, 33, 31, 6, 128)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", STEMS, ids=lambda s: "x".join(map(str, s)))
def test_stem(mode, shape):
    Stem(mode, *shape).check()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("x_dtype", TYPES.values(), ids=str)
def test_stem_of_a_picture_of_another_type(mode, x_dtype):
    Stem(mode, 2, 9, 17, 5, 48, x_dtype=x_dtype).check()


@pytest.mark.parametrize("mode", MODES)
def test_stem_same_bits_twice(mode):
    case = Stem(mode, 2, 9, 37, 5, 72)
    seeded(1)
    first = case.run()
    seeded(20241)
    assert torch.equal(first, case.run())


def test_stem_weights_of_another_type():
    """float32 weights packed as float16 give the bits of float16 weights."""
    case = Stem("f16", 1, 1, 1, 5, 48)
    weight = case.weight.float() + 1e-5
    assert torch.equal(case.packed(weight, "f16"), case.packed(weight.half(), "f16"))


@pytest.mark.parametrize("mode", MODES)
def test_stem_weights_of_more_frames_than_there_are(mode):
    assert torch.equal(Stem(mode, 1, 3, 5, 5, 24).run(), Stem(mode, 1, 3, 5, 5, 24, more=3).run())


@pytest.mark.parametrize("kind", KINDS)
def test_stem_rectifies_and_leaves_nan(kind):
    case = Stem(kind, 1, 3, 9, 5, 16)
    case.bias.fill_(-100)
    assert (case.run() == 0).all()
    case.x[0, 2, 1, 4] = float("nan")
    expected = torch.zeros(1, 16, 3, 9, dtype=torch.bool)
    expected[..., 3:6] = True
    assert torch.equal(case.run(check=False).isnan(), expected)


def test_stem_refusals():
    memory = Memory()
    _, y = memory.out_map(1, 2, 2, 16, torch.float16)

    def stem(frames=5, bias=memory.put(torch.zeros(16)), channels=16, y=y):
        K.stem(0, (1, frames, 2, 2), (20, 4, 2, 1), "f16", 0, bias, channels, y, "exact")

    with pytest.raises(ValueError, match="16 bytes"):
        stem(channels=12)
    with pytest.raises(ValueError, match="1 to 32 frames"):
        stem(frames=33)
    with pytest.raises(ValueError, match="y must have"):
        stem(channels=24)
    with pytest.raises(ValueError, match="a bias"):
        stem(bias=0)
    with pytest.raises(ValueError, match="no weights for so many"):
        K.pack_stem(0, "f16", (3, 5, 16), "f16", 0)


# ---- the edges of L35 ----

TAP_SHAPES = [(1, 1, 1, 64), (3, 1, 7, 24), (2, 3, 5, 256), (1, 37, 53, 72), (1, 9, 17, 264)]


def neighbours(planes, sign):
    """(n, 9, h, w): planes (n, 1 or 9, h, w) read at p + sign * tap, zero outside."""
    n, c, h, w = planes.shape
    padded = torch.nn.functional.pad(planes, (1, 1, 1, 1))
    return torch.stack([padded[:, tap % c, 1 + sign * dy:1 + sign * dy + h, 1 + sign * dx:1 + sign * dx + w]
                        for tap, (dy, dx) in enumerate((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1))], 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", TAP_SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_sum_taps(kind, shape):
    n, h, w, c = shape
    chunks = -(-c // 64)
    g, memory = generator("sum_taps", kind, shape), Memory()
    taps, bias = random(g, chunks, 9, n, h, w), random(g, 1)
    y = memory.out((n, h, w), TYPES[kind])
    K.sum_taps(memory.put(taps), 9 * chunks, n, h, w, memory.put(bias), y.data_ptr(), kind)
    memory.check()

    def run(a):
        moved = torch.stack([neighbours(chunk.transpose(0, 1), 1) for chunk in a.of(taps)])
        moved = moved.flip(0, 2) if a.mirrored else moved
        return a.rounded(moved.sum((0, 2)) + a.of(bias))
    judge("y", y, run, kind, TYPES[kind])
    with pytest.raises(ValueError, match="nine planes"):
        K.sum_taps(0, 4, n, h, w, 0, y.data_ptr(), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", TAP_SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_backward_of_taps(kind, shape):
    n, h, w, c = shape
    g, memory = generator("taps", kind, shape), Memory()
    dtype = TYPES[kind]
    grad, w3 = random(g, n, h, w, dtype=dtype), random(g, 9, c)
    act = random(g, n, c, h, w, dtype=dtype).relu()
    dh, dh_map = memory.out_map(n, h, w, c, dtype)
    K.taps_backward(memory.put(grad), kind, memory.put(w3), memory.map(act), dh_map)
    dw3, db3 = memory.out((9, c)), memory.out((1,))
    partial = memory.out((K.taps_gradient_partial_floats(n, h, w, c),))
    K.taps_gradient(memory.put(grad), kind, memory.map(act), dw3.data_ptr(), db3.data_ptr(), partial.data_ptr())
    memory.check()

    def data_gradient(a):
        around, weights = neighbours(a.of(grad)[:, None], -1), a.of(w3)
        order = slice(None, None, -1) if a.mirrored else slice(None)
        taps = [around[:, t, None] * per_channel(weights[t]) for t in range(9)][order]
        return a.rounded(torch.where(act > 0, sum(taps), 0))

    def weight_gradient(a):
        around, maps = neighbours(a.of(grad)[:, None], -1), a.of(act)
        if a.mirrored:
            around, maps = around.flip(0, 2, 3), maps.flip(0, 2, 3)
        return torch.einsum("nthw,nchw->tc", around, maps)

    judge("dh", dh.permute(0, 3, 1, 2), data_gradient, kind, dtype)
    judge("dw3", dw3, weight_gradient, "f32")
    judge("db3", db3, lambda a: a.of(grad).sum().view(1), "f32", scale=float(grad.numel()) ** 0.5)


def test_gradient_of_taps_over_many_runs():
    """More runs of pixels than blocks; the same bits in another order of threads."""
    n, h, w, c = 1, 129, 259, 8
    g, memory = generator("many runs"), Memory()
    grad, act = random(g, n, h, w), random(g, n, c, h, w)
    results = []
    for seed in (1, 20241):
        seeded(seed)
        dw3, db3 = memory.out((9, c)), memory.out((1,))
        partial = memory.out((K.taps_gradient_partial_floats(n, h, w, c),))
        K.taps_gradient(memory.put(grad), "f32", memory.map(act), dw3.data_ptr(), db3.data_ptr(), partial.data_ptr())
        results.append(torch.cat([dw3.flatten(), db3]))
    memory.check()
    assert torch.equal(*results)
    judge("dw3", results[0][:-1].view(9, c),
          lambda a: torch.einsum("nthw,nchw->tc", neighbours(a.of(grad)[:, None], -1), a.of(act)), "f32")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", TAP_SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_channel_sums_and_relu(kind, shape):
    n, h, w, c = shape
    g, memory = generator("relu", kind, shape), Memory()
    dtype = TYPES[kind]
    grad, y = (random(g, n, c, h, w, dtype=dtype) for _ in range(2))
    y = y.relu()
    out, out_map = memory.out_map(n, h, w, c, dtype)
    K.relu_backward(memory.map(grad), memory.map(y), out_map)
    sums, total = memory.out((K.tiles_of(n, h, w), 2, c)), memory.out((c,))
    K.channel_sums(memory.map(grad), sums.data_ptr())
    K.merge_sums(sums.data_ptr(), sums.shape[0], c, total.data_ptr(), 0)
    sums[:, 1].zero_()  # the second row is unused
    memory.check()
    assert torch.equal(out.permute(0, 3, 1, 2), torch.where(y > 0, grad, 0))
    judge("sums", total, lambda a: a.of(grad).sum((0, 2, 3)), "f32", scale=float(n * h * w) ** 0.5)
