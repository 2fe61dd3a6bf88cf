"""The weight gradient for Hopper (wgmma of two operands in shared memory), run by the emulator."""

from zlib import crc32

import pytest
import torch
from sm90_cases import KINDS, TYPES, K, Memory, hopper  # noqa: F401
from tolerance import assert_close_as_eager


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
