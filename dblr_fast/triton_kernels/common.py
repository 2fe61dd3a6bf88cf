"""What the kernels share: products, pixels' coordinates, and the sizes that decide how weights are packed."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Arguments that a kernel is compiled for once, whatever their values.
SIZES = ("pixels", "height", "width", "pixels_of_a_range", "ranges", "count", "tiles", "blocks", "y0", "x0", "rows",
         "columns", "area", "runs", "stride_n", "stride_t", "stride_y", "stride_x")

def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_2(n: int, least: int = 16) -> int:
    return max(least, triton.next_power_of_2(n))


def products(dtype: torch.dtype, tf32: bool) -> str:
    """How elements are multiplied; sums are float32 always."""
    if dtype == torch.float32 and tf32:
        return "tf32"
    # The interpreter multiplies bfloat16 by its bits.
    return "upcast" if INTERPRETED and dtype == torch.bfloat16 else "ieee"


def block_k(dtype: torch.dtype, channels: int) -> int:
    """Channels that one step of a product takes: 128 bytes of a pixel, where it has as many."""
    return min(power_of_2(channels), 64 if dtype.itemsize == 2 else 32)


def block_m(channels: int) -> int:
    """The most output channels a block computes; weights are padded to a multiple of it."""
    return min(power_of_2(channels), 128)


@triton.jit
def multiply(a, b, acc, PRODUCTS: tl.constexpr):
    if PRODUCTS == "upcast":
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        acc = tl.dot(a, b, acc, input_precision=PRODUCTS)
    return acc


# The interpreter (TRITON_INTERPRET=1) runs kernels on the CPU, on CPU tensors; it is chosen when they are defined.
INTERPRETED = not isinstance(multiply, triton.JITFunction)


# Elements of a block that works on a plain array. The interpreter takes its time for each block.
FLAT = 1 << 16 if INTERPRETED else 1024


@triton.jit
def relu(v):
    return tl.maximum(v, 0.0, propagate_nan=tl.PropagateNan.ALL)


_TRUNCATES = tl.constexpr(INTERPRETED)  # the interpreter cuts float32 off to bfloat16 where a GPU rounds


@triton.jit
def narrow(v, TYPE: tl.constexpr):
    """float32 v rounded to a map's type."""
    if _TRUNCATES and TYPE == tl.bfloat16:
        bits = v.to(tl.int32, bitcast=True)
        bits = bits + 0x7FFF + (bits >> 16 & 1) & -0x10000
        v = tl.where(v == v, bits.to(tl.float32, bitcast=True), v)
    return v.to(TYPE)


@triton.jit
def source(x, scale, shift, inside, RELU: tl.constexpr):
    """x, or with scale act(x * scale + shift), which is zero outside the picture all the same."""
    if scale is not None:
        v = x.to(tl.float32) * scale + shift
        if RELU:
            v = relu(v)
        x = narrow(tl.where(inside, v, 0.0), x.dtype)
    return x


@triton.jit
def vector(pointer, channels, COUNT: tl.constexpr):
    """(1, channels) of a float32 vector, zero from COUNT on."""
    return tl.load(pointer + channels, mask=channels < COUNT, other=0.0)[None, :]


@triton.jit
def finish(v, m, scale, shift, added0, added1, masked_by, mask_scale, mask_shift, COUT: tl.constexpr,
           RELU: tl.constexpr):
    """What follows a convolution's sums v (pixels, channels m): mask(act(v * scale + shift) + added0 + added1).

    scale, shift, mask_scale, mask_shift: pointers to vectors of all channels; added, masked_by: tensors. None leaves a
    step out (callers load what is there: no function may return None).
    """
    if scale is not None:
        v *= vector(scale, m, COUT)
    if shift is not None:
        v += vector(shift, m, COUT)
    if RELU:
        v = relu(v)
    if added0 is not None:
        v += added0.to(tl.float32)
    if added1 is not None:
        v += added1.to(tl.float32)
    if masked_by is not None:
        sign = masked_by.to(tl.float32)
        if mask_scale is not None:
            sign = sign * vector(mask_scale, m, COUT) + vector(mask_shift, m, COUT)
        v = tl.where(sign > 0, v, 0.0)
    return v
