"""The portable CUDA convolution and weight packing, run by the emulator, judged against float64 (kernel_cases.py)."""

import pytest
import torch
from kernel_cases import (KINDS, MODES, NAMES, TYPES, K, Memory, generator, judge, merge_statistics, per_channel,
                          products)


def pack(weight, mode, adjoint=False):
    """(memory, (address, out, in, kind)) of packed weights; from float32 or the mode's type."""
    kind = NAMES[TYPES[mode]]
    out, inner = weight.shape[:2]
    memory = Memory()
    first, second = (inner, out) if adjoint else (out, inner)
    packed = memory.out((K.packed_bytes(first, second, kind) // TYPES[mode].itemsize,), TYPES[mode])
    assert K.pack_weights(memory.put(weight), NAMES[weight.dtype], out, inner, adjoint, kind,
                          packed.data_ptr()) == (first, second)
    memory.check()
    return packed, (packed.data_ptr(), first, second, kind)


class Case:
    """One convolution with a prologue and an epilogue, by name of what is on."""

    def __init__(self, mode, n, h, w, inner, out, options=()):
        self.mode, self.dtype, self.options = mode, TYPES[mode], options
        self.n, self.h, self.w, self.inner, self.out = n, h, w, inner, out
        g = generator(mode, n, h, w, inner, out, options)

        def randn(*shape, std=1.0, mean=0.0, dtype=self.dtype):
            return (torch.randn(shape, generator=g) * std + mean).to(dtype)

        def vector(*shape, **how):
            return randn(*shape, dtype=torch.float32, **how)

        def when(option, make):
            return make() if option in options else None

        self.x = randn(n, inner, h, w)
        self.weight = randn(out, inner, 3, 3, std=(2 / (9 * inner)) ** 0.5)
        self.source = when("prologue", lambda: (vector(inner, mean=1, std=0.2), vector(inner, std=0.3)))
        self.scale = when("scale", lambda: vector(out, mean=1, std=0.2))
        self.shift = when("shift", lambda: vector(out))
        self.add0, self.add1, self.mask, self.norm_z = (
            when(option, lambda: randn(n, out, h, w)) for option in ("add0", "add1", "mask", "normalised"))
        if "mask" in options and "mask_norm" not in options:
            self.mask = self.mask.relu()  # what a ReLU leaves: half of it is exactly zero
        self.mask_norm = when("mask_norm", lambda: (vector(out, mean=1, std=0.2), vector(out, std=0.3)))
        self.norm = when("normalised", lambda: (vector(out, mean=1, std=0.2), vector(out, std=0.3)))
        self.tap_weights = when("taps", lambda: vector(9, out, std=0.1))

    def z(self, a):
        x = a.of(self.x)
        if self.source:
            scale, shift = (per_channel(a.of(v)) for v in self.source)
            x = a.rounded(x * scale + shift)
        if "source_relu" in self.options:
            x = x.relu()
        return a.conv(x, a.of(self.weight))

    def y(self, a):
        y = self.z(a)
        if self.scale is not None:
            y = y * per_channel(a.of(self.scale))
        if self.shift is not None:
            y = y + per_channel(a.of(self.shift))
        y = a.rounded(y)
        if "relu" in self.options:
            y = y.relu()
        for other in (self.add0, self.add1):
            y = y if other is None else a.rounded(y + a.of(other))
        if self.mask is not None:
            mask = a.of(self.mask)
            if self.mask_norm:
                mask = mask * per_channel(a.of(self.mask_norm[0])) + per_channel(a.of(self.mask_norm[1]))
            y = torch.where(mask > 0, y, 0)
        return y

    def run(self):
        """{name: tensor} of everything that the kernel writes."""
        n, h, w, out, memory = self.n, self.h, self.w, self.out, Memory()
        packed, weights = pack(self.weight, self.mode)
        source = {"x": memory.map(self.x), "relu": "source_relu" in self.options}
        if self.source:
            source.update(scale=memory.put(self.source[0]), shift=memory.put(self.source[1]))
        epilogue = {name: memory.map(getattr(self, name)) for name in ("add0", "add1", "mask", "norm_z")}
        epilogue.update(scale=memory.put(self.scale), shift=memory.put(self.shift), relu="relu" in self.options)
        for name, pair in (("mask", self.mask_norm), ("norm", self.norm)):
            if pair:
                epilogue.update({f"{name}_scale": memory.put(pair[0]), f"{name}_shift": memory.put(pair[1])})
        results = {}
        if "no_y" not in self.options:
            results["y"], epilogue["y"] = memory.out_map(n, h, w, out, self.dtype)
        sums = next((s for s in ("statistics", "total", "normalised") if s in self.options), "none")
        if sums != "none":
            partial = memory.out((K.tiles_of(n, h, w), 2, out))
            assert partial.numel() <= K.conv_partial_floats(n, h, w, out)
            results["partial"] = partial
            epilogue.update(sums=sums, partial=partial.data_ptr())
        if "taps" in self.options:
            results["taps"] = memory.out((-(-out // 64), 9, n, h, w))
            epilogue.update(taps=results["taps"].data_ptr(), tap_weights=memory.put(self.tap_weights))
        K.conv3x3(source, weights, epilogue, products(self.mode))
        if sums == "total":
            results["partial"][:, 1].zero_()  # the second row is unused
        memory.check()
        del packed
        return results

    def check(self):
        results = self.run()
        if "y" in results:
            judge("y", results["y"].permute(0, 3, 1, 2), self.y, self.mode, self.dtype)
        if "taps" in results:
            judge("taps", results["taps"], self.taps, self.mode)
        if "partial" in results:
            self.check_sums(results)

    def taps(self, a):
        y, weights = self.y(a), a.of(self.tap_weights)
        return torch.stack([torch.einsum("nchw,tc->tnhw", y[:, c:c + 64], weights[:, c:c + 64])
                            for c in range(0, self.out, 64)])

    def check_sums(self, results):
        memory, partial = Memory(), results["partial"]
        if "statistics" in self.options:
            first, second, *_ = merge_statistics(memory, partial, (self.n, self.h, self.w, self.out),
                                                 torch.ones(self.out), torch.zeros(self.out))
            memory.check()
            judge("mean", first, lambda a: a.rounded(self.z(a)).mean((0, 2, 3)), self.mode, scale=1.0)
            judge("var", second, lambda a: a.rounded(self.z(a)).var((0, 2, 3), unbiased=False), self.mode, scale=1.0)
            return
        first, second = memory.out((self.out,)), memory.out((self.out,))
        K.merge_sums(partial.data_ptr(), partial.shape[0], self.out, first.data_ptr(), second.data_ptr())
        memory.check()
        # What is summed are the values as they were stored; only the sums are judged here.
        y = results["y"]
        scale = float(self.n * self.h * self.w) ** 0.5
        judge("sum", first, lambda a: a.of(y).sum((0, 1, 2)), "f32", scale=scale)
        if "normalised" in self.options:
            def sum_of_products(a):
                xhat = a.of(self.norm_z) * per_channel(a.of(self.norm[0])) + per_channel(a.of(self.norm[1]))
                return (a.of(y).permute(0, 3, 1, 2) * xhat).sum((0, 2, 3))
            judge("sum of products", second, sum_of_products, "f32", scale=scale)


SHAPES = [(1, 1, 1, 64, 64), (3, 1, 7, 64, 64), (1, 3, 5, 64, 256), (3, 3, 5, 256, 64), (1, 37, 53, 64, 64),
          (3, 3, 5, 8, 24), (1, 37, 53, 72, 40)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_convolution(mode, shape):
    Case(mode, *shape).check()


def test_convolution_of_a_large_map():
    Case("f16", 1, 129, 131, 8, 24, ("shift", "relu")).check()


OPTIONS = [
    ("shift", "relu"),
    ("scale", "shift", "relu", "add0", "add1"),
    ("scale", "add0"),
    ("prologue", "statistics"),
    ("prologue", "source_relu", "shift", "total"),
    ("mask", "total"),
    ("mask", "mask_norm", "add0", "normalised"),
    ("normalised", "prologue", "source_relu", "relu"),
    ("shift", "relu", "taps"),
    ("shift", "relu", "taps", "no_y"),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", OPTIONS, ids="-".join)
def test_prologue_and_epilogue(mode, options):
    Case(mode, 2, 9, 17, 40, 72, options).check()


@pytest.mark.parametrize("mode", ("f16", "f32"))
def test_statistics_of_many_tiles(mode):
    Case(mode, 3, 37, 53, 8, 24, ("statistics",)).check()


@pytest.mark.parametrize("mode", MODES)
def test_adjoint_weights_give_the_data_gradient(mode):
    n, h, w, inner, out = 2, 3, 5, 24, 72
    g = generator(mode, "adjoint")
    dtype = TYPES[mode]
    dy = torch.randn(n, out, h, w, generator=g).to(dtype)
    weight = (torch.randn(out, inner, 3, 3, generator=g) * (2 / (9 * inner)) ** 0.5).to(dtype)
    packed, weights = pack(weight, mode, adjoint=True)
    memory = Memory()
    dx, there = memory.out_map(n, h, w, inner, dtype)
    K.conv3x3({"x": memory.map(dy)}, weights, {"y": there}, products(mode))
    memory.check()
    reversed_weight = weight.transpose(0, 1).flip(2, 3)
    judge("dx", dx.permute(0, 3, 1, 2), lambda a: a.conv(a.of(dy), a.of(reversed_weight)), mode, dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("from_dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_packed_weights_lie_as_said(kind, from_dtype):
    out, inner = 72, 136
    weight = torch.randn(out, inner, 3, 3, generator=generator(kind)).to(from_dtype)
    for adjoint in (False, True):
        packed, _ = pack(weight, kind, adjoint)
        whole = weight.transpose(0, 1).flip(2, 3) if adjoint else weight
        first, second = (-(-size // 64) for size in whole.shape[:2])
        padded = torch.zeros(first * 64, second * 64, 3, 3, dtype=from_dtype)
        padded[:whole.shape[0], :whole.shape[1]] = whole
        wanted = padded.view(first, 64, second, 64, 9).permute(0, 2, 4, 1, 3).to(TYPES[kind])
        assert torch.equal(packed.view(wanted.shape), wanted)


@pytest.mark.parametrize("mode", ("f16", "tf32", "f32"))
def test_same_bits_twice(mode):
    case = Case(mode, 2, 9, 17, 72, 72, ("prologue", "add0", "normalised", "taps"))
    first = case.run()
    K.set_seed(20241)  # blocks and threads in another order
    second = case.run()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_refusals():
    case = Case("f16", 1, 2, 2, 8, 8)
    memory = Memory()
    _, weights = pack(case.weight, "f16")
    _, y = memory.out_map(1, 2, 2, 8, torch.float16)
    with pytest.raises(ValueError, match="channels"):
        K.conv3x3({"x": memory.map(torch.zeros(1, 16, 2, 2, dtype=torch.float16))}, weights, {"y": y}, "exact")
    with pytest.raises(ValueError, match="write to"):
        K.conv3x3({"x": memory.map(case.x)}, weights, {}, "exact")
