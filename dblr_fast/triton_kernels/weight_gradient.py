"""Weight gradients in two stages: partial sums over ranges of pixels, then their sum in a fixed order.

How many ranges there are is a function of shapes alone, and no sum is made by atomics: the bits are always the same.
Counted: 2 * 9 * CIN * COUT operations a pixel; a block takes three taps (one row of the filter), so that each pixel of
dy is fetched three times and each of x nine times, from the L2 cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tuning
from .common import FLAT, SIZES, ceil_div, multiply, narrow, products, source
from .convolution import Norm

BLOCKS = 384  # wanted at least: about three for each multiprocessor of a large GPU


@triton.jit
def _tap(acc, d, x, offset, c, px, dx, rows_inside, scales, shifts, width, CIN: tl.constexpr, RELU_IN: tl.constexpr,
         PRODUCTS: tl.constexpr):
    inside = (rows_inside & (px + dx >= 0) & (px + dx < width))[:, None] & (c < CIN)[None, :]
    b = tl.load(x + ((offset + dx) * CIN)[:, None] + c[None, :], mask=inside, other=0.0)
    b = source(b, scales, shifts, inside, RELU_IN)
    return multiply(tl.trans(d), b, acc, PRODUCTS)


@triton.jit(do_not_specialize=SIZES)
def weight_gradient_partial(x, dy, scale_in, shift_in, partial, pixels, height, width, pixels_of_a_range,
                            CIN: tl.constexpr, COUT: tl.constexpr, RELU_IN: tl.constexpr, PRODUCTS: tl.constexpr,
                            BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr):
    """partial[range][tap][out][in] = sum over the range's pixels p of dy[p][out] * s[p + tap][in].

    s = act(x * scale_in + shift_in), x itself without scale_in.
    """
    BLOCKS_M: tl.constexpr = (COUT + BLOCK_M - 1) // BLOCK_M
    BLOCKS_C: tl.constexpr = (CIN + BLOCK_C - 1) // BLOCK_C
    part = tl.program_id(0)
    row = part % 3  # of the filter
    m = part // 3 % BLOCKS_M * BLOCK_M + tl.arange(0, BLOCK_M)
    c = part // (3 * BLOCKS_M) % BLOCKS_C * BLOCK_C + tl.arange(0, BLOCK_C)
    part = part // (3 * BLOCKS_M * BLOCKS_C)
    first = part.to(tl.int64) * pixels_of_a_range
    count = tl.minimum(pixels_of_a_range, pixels - part * pixels_of_a_range)
    x += first * CIN
    dy += first * COUT
    scales = scale_in
    shifts = shift_in
    if scale_in is not None:
        scales = tl.load(scale_in + c, mask=c < CIN, other=0.0)[None, :]
        shifts = tl.load(shift_in + c, mask=c < CIN, other=0.0)[None, :]
    left = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    middle = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    right = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for start in range(0, count, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        at = part * pixels_of_a_range + p
        px = at % width
        py = at // width % height + row - 1
        d = tl.load(dy + (p * COUT)[:, None] + m[None, :], mask=(p < count)[:, None] & (m < COUT)[None, :], other=0.0)
        rows_inside = (p < count) & (py >= 0) & (py < height)
        offset = p + (row - 1) * width
        left = _tap(left, d, x, offset, c, px, -1, rows_inside, scales, shifts, width, CIN, RELU_IN, PRODUCTS)
        middle = _tap(middle, d, x, offset, c, px, 0, rows_inside, scales, shifts, width, CIN, RELU_IN, PRODUCTS)
        right = _tap(right, d, x, offset, c, px, 1, rows_inside, scales, shifts, width, CIN, RELU_IN, PRODUCTS)
    partial += (part * 9 + row * 3).to(tl.int64) * COUT * CIN
    at = (m * CIN)[:, None] + c[None, :]
    keep = (m < COUT)[:, None] & (c < CIN)[None, :]
    tl.store(partial + at, left, mask=keep)
    tl.store(partial + COUT * CIN + at, middle, mask=keep)
    tl.store(partial + 2 * COUT * CIN + at, right, mask=keep)


@triton.jit(do_not_specialize=SIZES)
def sum_partial(partial, total, ranges, count, TAPS: tl.constexpr, BLOCK: tl.constexpr):
    """total[i][tap] = sum over ranges of partial[range][tap][i], in order; count elements in all."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for _ in range(ranges):
        acc += tl.load(partial + at, mask=at < count, other=0.0)
        partial += count
    inner = count // TAPS
    tl.store(total + at % inner * TAPS + at // inner, narrow(acc, total.dtype.element_ty), mask=at < count)


def ranges_of(pixels: int, block: int, blocks_each: int) -> tuple[int, int]:
    """(ranges, pixels of each): enough for BLOCKS blocks of threads, at least four steps of `block` pixels each."""
    ranges = max(1, min(ceil_div(BLOCKS, blocks_each), ceil_div(pixels, 4 * block)))
    each = ceil_div(ceil_div(pixels, ranges), block) * block
    return ceil_div(pixels, each), each


def weight_gradient(x: Tensor, dy: Tensor, *, norm_in: Norm | None = None, relu_in: bool = False, tf32: bool = False,
                    dtype: torch.dtype = torch.float32) -> Tensor:
    """dw (COUT, CIN, 3, 3) of maps x (N, H, W, CIN), through norm_in and ReLU where given, and dy (N, H, W, COUT)."""
    n, h, w, cin = x.shape
    cout, pixels = dy.shape[3], n * h * w
    options = tuning.weight_gradient(x.dtype, cin, cout, tf32, x.device)
    block_m, block_c, block_p = (options[0][k] for k in ("BLOCK_M", "BLOCK_C", "BLOCK_P"))
    blocks = 3 * ceil_div(cout, block_m) * ceil_div(cin, block_c)
    ranges, each = ranges_of(pixels, block_p, blocks)
    partial = torch.empty((ranges, 9, cout, cin), device=x.device)
    tuning.launch(weight_gradient_partial, ranges * blocks, dict(
        x=x, dy=dy, scale_in=norm_in and norm_in.scale, shift_in=norm_in and norm_in.shift, partial=partial,
        pixels=pixels, height=h, width=w, pixels_of_a_range=each, CIN=cin, COUT=cout, RELU_IN=relu_in,
        PRODUCTS=products(x.dtype, tf32)), options)
    return add_up(partial, (cout, cin, 3, 3), 9, dtype)


def add_up(partial: Tensor, shape: tuple[int, ...], taps: int, dtype: torch.dtype) -> Tensor:
    """Sum over the first dimension of partial (ranges, taps, elements); taps become the last dimension."""
    total = torch.empty(shape, dtype=dtype, device=partial.device)
    block = FLAT // 4
    tuning.launch(sum_partial, ceil_div(total.numel(), block), dict(
        partial=partial, total=total, ranges=partial.shape[0], count=total.numel(), TAPS=taps, BLOCK=block))
    return total
