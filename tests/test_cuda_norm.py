"""Batch norm by the pixel, merged sums and copies between layouts on CUDA, run by the emulator (kernel_cases.py)."""

import pytest
import torch
from kernel_cases import EPS, KINDS, NAMES, TYPES, K, Memory, generator, judge, merge_statistics, per_channel

NORM_SHAPES = [(1, 1, 1, 8), (3, 1, 7, 64), (2, 9, 17, 24), (1, 37, 53, 40), (1, 3, 5, 512)]


class Norm:
    """Vectors of a batch norm over random maps, and their coefficients from the kernel."""

    def __init__(self, kind, n, h, w, c, training=True):
        g = generator(kind, n, h, w, c)
        self.dtype, self.kind, self.shape, self.training = TYPES[kind], kind, (n, h, w, c), training
        self.z, self.grad, self.add = (torch.randn(n, c, h, w, generator=g).to(self.dtype) for _ in range(3))
        self.gamma, self.beta, self.bias, self.mean = (torch.randn(c, generator=g) for _ in range(4))
        self.var = torch.rand(c, generator=g) + 0.5
        memory = Memory()
        self.coefficients = [memory.out((c,)) for _ in range(4)]
        self.addresses = [t.data_ptr() for t in self.coefficients]
        vectors = [memory.put(t) for t in (self.gamma, self.beta, self.bias, self.mean, self.var)]
        K.norm_coefficients(vectors, EPS, training, c, self.addresses)
        memory.check()

    def formula(self, a):
        """scale, shift, invstd, offset."""
        gamma, beta, bias, mean, var = (a.of(t) for t in (self.gamma, self.beta, self.bias, self.mean, self.var))
        invstd = 1 / (var + EPS).sqrt()
        away = -mean if self.training else bias - mean
        return gamma * invstd, beta + away * gamma * invstd, invstd, away * invstd

    def gradient(self, a, relu):
        """g and xhat, from the coefficients as the kernel rounded them."""
        scale, shift, invstd, offset = (per_channel(a.of(t)) for t in self.coefficients)
        z, g = a.of(self.z), a.of(self.grad)
        if relu:
            g = torch.where(z * scale + shift > 0, g, 0)
        return g, z * invstd + offset


@pytest.mark.parametrize("training", (True, False))
def test_norm_coefficients(training):
    norm = Norm("f32", 1, 1, 1, 300, training)
    for i, name in enumerate(("scale", "shift", "invstd", "offset")):
        judge(name, norm.coefficients[i], lambda a, i=i: norm.formula(a)[i], "f32")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", NORM_SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("relu", (True, False))
def test_norm_apply(kind, shape, relu):
    norm, memory = Norm(kind, *shape), Memory()
    add = norm.add if relu else None
    y, there = memory.out_map(*shape, norm.dtype)
    K.norm_apply(memory.map(norm.z), *norm.addresses[:2], relu, memory.map(add), there)
    memory.check()

    def run(a):
        v = a.rounded(a.of(norm.z) * per_channel(a.of(norm.coefficients[0])) + per_channel(a.of(norm.coefficients[1])))
        return a.rounded(v.relu() + a.of(add)) if relu else v
    judge("y", y.permute(0, 3, 1, 2), run, kind, norm.dtype)


def test_norm_apply_in_place():
    norm, memory = Norm("f16", 2, 9, 17, 24), Memory()
    y, there = memory.out_map(*norm.shape, norm.dtype)
    K.norm_apply(memory.map(norm.z), *norm.addresses[:2], True, memory.map(norm.add), there)
    z = memory.out(y.shape, norm.dtype).copy_(norm.z.permute(0, 2, 3, 1))
    place = (z.data_ptr(), *there[1:])
    K.norm_apply(place, *norm.addresses[:2], True, memory.map(norm.add), place)
    memory.check()
    assert torch.equal(z, y)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", NORM_SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("relu", (True, False))
def test_norm_backward(kind, shape, relu):
    n, h, w, c = shape
    norm, memory = Norm(kind, *shape), Memory()
    grad, z = memory.map(norm.grad), memory.map(norm.z)
    partial = memory.out((K.tiles_of(n, h, w), 2, c))
    dbeta, dgamma = memory.out((c,)), memory.out((c,))
    K.norm_backward_sums(grad, z, norm.addresses, relu, partial.data_ptr())
    K.merge_sums(partial.data_ptr(), partial.shape[0], c, dbeta.data_ptr(), dgamma.data_ptr())
    memory.check()
    scale = float(n * h * w) ** 0.5
    judge("dbeta", dbeta, lambda a: norm.gradient(a, relu)[0].sum((0, 2, 3)), "f32", scale=scale)
    judge("dgamma", dgamma, lambda a: torch.mul(*norm.gradient(a, relu)).sum((0, 2, 3)), "f32", scale=scale)

    for training in (True, False):
        dz, there = memory.out_map(*shape, norm.dtype)
        K.norm_backward_apply(grad, z, norm.addresses, dbeta.data_ptr(), dgamma.data_ptr(), relu, training, there)
        memory.check()

        def run(a):
            g, xhat = norm.gradient(a, relu)
            if training:
                g = g - (per_channel(a.of(dbeta)) + xhat * per_channel(a.of(dgamma))) / (n * h * w)
            return a.rounded(per_channel(a.of(norm.coefficients[0])) * g)
        judge("dz", dz.permute(0, 3, 1, 2), run, kind, norm.dtype, scale=1.0)


class Tiles:
    """Statistics of the tiles of a map (n, h, w, c), their means around `mean` as tiles of variance 1 have them."""

    def __init__(self, shape, by_rows, mean=0.0):
        n, h, w, c = self.shape = shape
        self.by_rows = by_rows
        g = generator("tiles", shape, by_rows, mean)
        rows, columns = (1, 128) if by_rows else (8, 16)
        down, across = (torch.tensor([min(step, size - at) for at in range(0, size, step)])
                        for step, size in ((rows, h), (columns, w)))
        self.pixels = (down[:, None] * across).flatten().repeat(n)[:, None].float()
        means = mean + torch.randn(len(self.pixels), c, generator=g)
        self.partial = torch.stack([means, self.pixels * torch.rand(means.shape, generator=g)], 1)
        self.gamma, self.beta = torch.randn(2, c, generator=g)

    def mean(self, a):
        return (a.of(self.pixels) * a.of(self.partial[:, 0])).sum(0) / a.of(self.pixels).sum()

    def var(self, a):
        means, apart = a.of(self.partial).unbind(1)
        return (apart + a.of(self.pixels) * (means - self.mean(a)) ** 2).sum(0) / a.of(self.pixels).sum()

    def merge(self, memory):
        partial, guard = memory.guarded(self.partial.shape, torch.float32, float("nan"))
        memory.kept.append(guard)
        return merge_statistics(memory, partial.copy_(self.partial), self.shape, self.gamma, self.beta, self.by_rows)


MERGED = [(1, 1, 1, 8), (3, 1, 7, 64), (2, 17, 131, 12), (2, 16, 256, 64), (2, 301, 130, 4)]


@pytest.mark.parametrize("by_rows", (False, True))
@pytest.mark.parametrize("shape", MERGED, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("centre", (0.0, 1000.0))
def test_merge_statistics(shape, by_rows, centre):
    """Mean and variance; what is made of them is what norm_coefficients makes of them later on, to the bit."""
    tiles, memory = Tiles(shape, by_rows, centre), Memory()
    mean, var, *coefficients = tiles.merge(memory)
    memory.check()
    judge("mean", mean, tiles.mean, "f32", scale=max(1.0, centre))
    judge("var", var, tiles.var, "f32")
    again = [memory.out((shape[3],)) for _ in range(4)]
    K.norm_coefficients([memory.put(t) for t in (tiles.gamma, tiles.beta, None, mean, var)], EPS, True, shape[3],
                        [t.data_ptr() for t in again])
    memory.check()
    for ours, theirs in zip(coefficients, again):
        assert torch.equal(ours, theirs)


def test_merge_statistics_same_bits_whatever_the_order_of_threads():
    tiles, results = Tiles((2, 301, 130, 4), True), []
    for seed in (1, 2, 3):
        K.set_seed(seed)
        results.append(torch.stack(tiles.merge(Memory())))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_merge_statistics_of_constant_maps_and_of_nan():
    """What cancels leaves no negative variance, and not-a-number stays."""
    tiles = Tiles((2, 17, 131, 12), False)
    tiles.partial[:, 0] = torch.arange(12) * 1234.567
    tiles.partial[:, 1] = 0
    tiles.partial[3, 0, 5] = tiles.partial[3, 1, 6] = float("nan")
    mean, var, *_ = tiles.merge(Memory())
    finite = torch.arange(12) != 5
    assert mean[finite].isfinite().all() and mean[5].isnan()
    finite[6] = False
    assert (var[finite] >= 0).all() and var[[5, 6]].isnan().all()


def test_merge_sums_of_many_rows():
    partial, memory = torch.randn(1301, 2, 12, generator=generator("many")), Memory()
    sums = memory.out((2, 12))
    K.merge_sums(memory.put(partial), len(partial), 12, *(t.data_ptr() for t in sums))
    memory.check()
    judge("sums", sums, lambda a: a.of(partial).sum(0), "f32", scale=36.0)


def test_merge_sums_of_one_row():
    partial, memory = torch.randn(5, 2, 12, generator=generator("merge")), Memory()
    first = memory.out((12,))
    K.merge_sums(memory.put(partial), 5, 12, first.data_ptr(), 0)
    memory.check()
    judge("sum", first, lambda a: a.of(partial[:, 0]).sum(0), "f32", scale=2.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("from_dtype", (torch.float32, torch.float16))
def test_copy_map(kind, from_dtype):
    wide = torch.randn(3, 7, 11, 10, generator=generator(kind, "copy")).to(from_dtype)
    views = (wide[:, 1:6], wide[:, :, ::2, 1:], wide.transpose(2, 3), wide.to(memory_format=torch.channels_last),
             wide[:1, :1, :1, :1], wide.flip(0)[:, :, :, 3:4].expand(3, 7, 11, 4))
    for view in views:
        n, c, h, w = view.shape
        memory = Memory()
        to, there = memory.out_map(n, h, w, 16, TYPES[kind])
        K.copy_map(view.data_ptr(), view.shape, view.stride(), NAMES[from_dtype], there)
        memory.check()
        assert torch.equal(to[..., :c], view.permute(0, 2, 3, 1).to(TYPES[kind]))
        assert not to[..., c:].any()
