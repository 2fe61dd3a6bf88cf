"""The 3x3 convolution whose input is a few planes (N, T, H, W) in any strides: L1, and the gradient of L35.

A frame is one step of a product: its nine taps, gathered for each pixel, by the weights of all channels. L1 leaves its
48 channels in memory, in the maps' type: computing them again for each of L2's nine taps would double L2's products
(counted for 1280x720 in 16 bits: 86 us more, against 41 us to write and read 48 channels at 4.3 TB/s).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tuning
from .common import INTERPRETED, SIZES, block_m, ceil_div, multiply, narrow, products, relu
from .weight_gradient import add_up, ranges_of


@triton.jit
def _taps(px, py, valid, height, width, stride_y, stride_x):
    """(addresses within a plane, whether in the picture), both (pixels, 16): a tap is at 4 * row + column.

    Rows of four taps, and addresses of 32 bits that frames share, keep instructions few whether or not the compiler
    knows which tap a thread reads.
    """
    k = tl.arange(0, 16)[None, :]
    row, column = k >> 2, k & 3
    px = px[:, None] + column - 1
    py = py[:, None] + row - 1
    inside = valid[:, None] & (row < 3) & (column < 3) & (py >= 0) & (py < height) & (px >= 0) & (px < width)
    return py * stride_y + px * stride_x, inside


@triton.jit(do_not_specialize=SIZES)
def planes_convolution(x, weights, y, bias, mask, partial, tiles, height, width, stride_n, stride_t, stride_y, stride_x,
                       COUT: tl.constexpr, FRAMES: tl.constexpr, RELU: tl.constexpr, PRODUCTS: tl.constexpr,
                       BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr):
    """y (N, H, W, COUT) = mask(act(conv + bias)); weights (COUT padded, FRAMES * 16); tiles: of a picture;
    partial (N * tiles, 2, COUT): sums."""
    BLOCKS_M: tl.constexpr = (COUT + BLOCK_M - 1) // BLOCK_M
    part = tl.program_id(0) // BLOCKS_M
    tile = part % tiles
    picture = (part // tiles).to(tl.int64)
    m = tl.program_id(0) % BLOCKS_M * BLOCK_M + tl.arange(0, BLOCK_M)
    p = tl.arange(0, BLOCK_P)
    at = tile * BLOCK_P + p
    valid = at < height * width
    address, inside = _taps(at % width, at // width, valid, height, width, stride_y, stride_x)
    a = weights + (m * (16 * FRAMES))[:, None] + tl.arange(0, 16)[None, :]
    x += picture * stride_n
    v = tl.zeros((BLOCK_P, BLOCK_M), tl.float32)
    for t in tl.static_range(FRAMES):
        b = tl.load(x + address, mask=inside, other=0.0)
        v = multiply(narrow(b.to(tl.float32), weights.dtype.element_ty), tl.trans(tl.load(a + 16 * t)), v, PRODUCTS)
        x += stride_t
    channel = m < COUT
    keep = valid[:, None] & channel[None, :]
    at = (picture * height * width + tile * BLOCK_P) * COUT + (p * COUT)[:, None] + m[None, :]
    if bias is not None:
        v += tl.load(bias + m, mask=channel, other=0.0)[None, :]
    if RELU:
        v = relu(v)
    if mask is not None:
        v = tl.where(tl.load(mask + at, mask=keep, other=0.0).to(tl.float32) > 0, v, 0.0)
    tl.store(y + at, narrow(v, y.dtype.element_ty), mask=keep)
    if partial is not None:
        total = tl.sum(tl.where(keep, v, 0.0), 0)
        partial += part.to(tl.int64) * 2 * COUT
        tl.store(partial + m, total, mask=channel)
        tl.store(partial + COUT + m, total, mask=channel)


@triton.jit(do_not_specialize=SIZES)
def planes_gradient_partial(x, dy, partial, pixels, height, width, stride_n, stride_t, stride_y, stride_x,
                            pixels_of_a_range, COUT: tl.constexpr, FRAMES: tl.constexpr, PRODUCTS: tl.constexpr,
                            BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr):
    """partial[range][out][9 t + tap] = sum over the range's pixels p of dy[p][out] * x[t][p + tap]; a block: one t."""
    BLOCKS_M: tl.constexpr = (COUT + BLOCK_M - 1) // BLOCK_M
    t = tl.program_id(0) % FRAMES  # blocks that read the same dy follow one another
    part = tl.program_id(0) // FRAMES // BLOCKS_M
    m = tl.program_id(0) // FRAMES % BLOCKS_M * BLOCK_M + tl.arange(0, BLOCK_M)
    first = part * pixels_of_a_range
    count = tl.minimum(pixels_of_a_range, pixels - first)
    dy += first.to(tl.int64) * COUT
    x += t.to(tl.int64) * stride_t
    acc = tl.zeros((BLOCK_M, 16), tl.float32)
    for start in range(0, count, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        valid = p < count
        d = tl.load(dy + (p * COUT)[:, None] + m[None, :], mask=valid[:, None] & (m < COUT)[None, :], other=0.0)
        row = (first + p) // width
        address, inside = _taps((first + p) % width, row % height, valid, height, width, stride_y, stride_x)
        of_picture = x + (row // height).to(tl.int64) * stride_n
        b = tl.load(of_picture[:, None] + address, mask=inside, other=0.0)
        acc = multiply(tl.trans(d), narrow(b.to(tl.float32), d.dtype), acc, PRODUCTS)
    partial += part.to(tl.int64) * COUT * 9 * FRAMES
    k = tl.arange(0, 16)
    at = (m * (9 * FRAMES))[:, None] + (9 * t + 3 * (k >> 2) + (k & 3))[None, :]
    tl.store(partial + at, acc, mask=(m < COUT)[:, None] & (k < 12)[None, :] & ((k & 3) < 3)[None, :])


@triton.jit(do_not_specialize=SIZES)
def shifted_sum(taps, bias, y, blocks, height, width, y0, x0, rows, columns, area, BLOCK: tl.constexpr):
    """y[p] = bias + the sum over blocks of channels and taps of taps[block][tap][p + tap], from row y0, column x0."""
    picture = tl.program_id(1)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = at < rows * columns
    py = at // columns + y0
    px = at % columns + x0
    plane = height.to(tl.int64) * width
    taps += picture * plane
    acc = tl.zeros((BLOCK,), tl.float32)
    for step in range(9 * blocks):
        dy = step % 9 // 3 - 1
        dx = step % 3 - 1
        inside = valid & (py + dy >= 0) & (py + dy < height) & (px + dx >= 0) & (px + dx < width)
        acc += tl.load(taps + (py + dy).to(tl.int64) * width + px + dx, mask=inside, other=0.0)
        taps += area
    if bias is not None:
        acc += tl.load(bias).to(tl.float32)
    tl.store(y + picture.to(tl.int64) * rows * columns + at, narrow(acc, y.dtype.element_ty), mask=valid)


def _option(cout: int) -> dict:
    """What sums are taken with: a thread gathers 32 of a block's values, each by an address of its own."""
    return dict(BLOCK_M=min(block_m(cout), 64), BLOCK_P=64, num_warps=4)


def _options(cout: int, dtype: torch.dtype, sums: bool) -> list[dict]:
    """Sums over a block's pixels leave one configuration alone."""
    option = _option(cout)
    if sums or INTERPRETED:
        return [option]
    # In 16 bits a thread has registers for all channels of a pixel of its own. For L1 on Hopper, Triton 3.6 then spends
    # 704 instructions a pixel, 992 with two threads a pixel; Triton 3.9 spends 1408, and 896 with two.
    own = ((128, 4), (256, 8)) if dtype.itemsize == 2 else ()
    return [option | dict(BLOCK_P=p, num_warps=warps) for p, warps in (*own, (64, 4), (128, 8))]


def pack_planes(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """weight (COUT, T, 3, 3) -> (COUT padded, T * 16), a tap at 4 * row + column."""
    cout = weight.shape[0]
    step = block_m(cout)
    rows = ceil_div(cout, step) * step - cout
    return torch.nn.functional.pad(weight.to(dtype), (0, 1, 0, 1, 0, 0, 0, rows)).flatten(1)


def _near(x: Tensor) -> Tensor:
    """x, a copy where addresses within a plane need more than 32 bits."""
    far = x.shape[2] * x.stride(2) + x.shape[3] * x.stride(3) >= 1 << 31
    return x.contiguous() if far else x


def _strides(x):
    return dict(stride_n=x.stride(0), stride_t=x.stride(1), stride_y=x.stride(2), stride_x=x.stride(3))


def convolve_planes(x: Tensor, weights: Tensor, cout: int, *, bias: Tensor | None = None, relu: bool = False,
                    mask: Tensor | None = None, sums: bool = False, tf32: bool = False) -> tuple[Tensor, Tensor | None]:
    """(y (N, H, W, cout) of the weights' type, partial sums (tiles, 2, cout) or None); x (N, T, H, W), any strides."""
    x = _near(x)
    n, t, h, w = x.shape
    options = _options(cout, weights.dtype, sums)

    def tiles(o):
        return ceil_div(h * w, o["BLOCK_P"])

    y = torch.empty((n, h, w, cout), dtype=weights.dtype, device=x.device)
    partial = torch.empty((n * tiles(options[0]), 2, cout), device=x.device) if sums else None
    tuning.launch(planes_convolution, lambda o: n * tiles(o) * ceil_div(cout, o["BLOCK_M"]), dict(
        x=x, weights=weights, y=y, bias=bias, mask=mask, partial=partial, tiles=tiles, height=h, width=w, **_strides(x),
        COUT=cout, FRAMES=t, RELU=relu, PRODUCTS=products(weights.dtype, tf32)), options)
    return y, partial


def planes_gradient(x: Tensor, dy: Tensor, *, tf32: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    """dw (COUT, T, 3, 3) of planes x (N, T, H, W) in any strides and a map dy (N, H, W, COUT)."""
    x = _near(x)
    n, t, h, w = x.shape
    cout = dy.shape[3]
    option = _option(cout)
    blocks = ceil_div(cout, option["BLOCK_M"]) * t
    ranges, each = ranges_of(n * h * w, option["BLOCK_P"], blocks)
    partial = torch.empty((ranges, cout * 9 * t), device=x.device)
    tuning.launch(planes_gradient_partial, ranges * blocks, dict(
        x=x, dy=dy, partial=partial, pixels=n * h * w, height=h, width=w, **_strides(x), pixels_of_a_range=each,
        COUT=cout, FRAMES=t, PRODUCTS=products(dy.dtype, tf32)), [option])
    return add_up(partial, (cout, t, 3, 3), 1, dtype)


def sum_taps(taps: Tensor, bias: Tensor, dtype: torch.dtype, valid: tuple[int, int, int, int] | None = None) -> Tensor:
    """(N, 1, H, W) of tap planes (blocks, 9, N, H, W), or rows y0..y1, columns x0..x1 of valid = (y0, y1, x0, x1)."""
    blocks, _, n, h, w = taps.shape
    y0, y1, x0, x1 = valid or (0, h, 0, w)
    y = torch.empty((n, 1, y1 - y0, x1 - x0), dtype=dtype, device=taps.device)
    block = 256
    tuning.launch(shifted_sum, (ceil_div((y1 - y0) * (x1 - x0), block), n), dict(
        taps=taps, bias=bias, y=y, blocks=blocks, height=h, width=w, y0=y0, x0=x0, rows=y1 - y0, columns=x1 - x0,
        area=n * h * w, BLOCK=block))
    return y
