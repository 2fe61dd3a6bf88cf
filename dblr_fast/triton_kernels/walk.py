"""The 3x3 convolution of at most one step of channels (64 in 16 bits), walking down the picture.

A block holds all nine taps' weights in shared memory and goes down a run of BLOCK_P pixels row by row. Of each row it
reads three copies, one pixel apart, and multiplies each by three taps: the row is the last of the three rows that the
output above it needs, the middle one of its own, the first of the one below. So three rows of sums are under way, each
adds its taps in the order of `conv3x3`'s tiles, and each pixel is fetched three times from the L2 cache (384 bytes for
64 channels in 16 bits), not nine; the weights once a block. Pixels are the rows of the products: with eight warps each
four then take pixels of their own, and no sums change places on their way to the next row.

Counted for 128 pixels and 64 channels: 2304 clocks of Hopper's matrix unit a row, as many of shared memory, which
products read both sides from, 400 for what comes in; 96 registers a thread for sums; 224 KiB, of which weights are 72.
A block's first and last row are multiplied for others: 2 of rows + 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import finish, multiply, narrow


@triton.jit
def _column(above, here, below, b, last, middle, first, PRODUCTS: tl.constexpr):
    """Adds pixels b to the sums of three rows, each by its tap of one column."""
    above = multiply(b, last, above, PRODUCTS)
    here = multiply(b, middle, here, PRODUCTS)
    below = multiply(b, first, below, PRODUCTS)
    return above, here, below


@triton.jit
def _store(v, at, m, keep, y, scale, shift, added0, add1, mask, mask_scale, mask_shift, COUT: tl.constexpr,
           RELU: tl.constexpr):
    """Finishes channels m of a row's sums and stores them."""
    if add1 is not None:
        add1 = tl.load(add1 + at, mask=keep, other=0.0)
    if mask is not None:
        mask = tl.load(mask + at, mask=keep, other=0.0)
    v = finish(v, m, scale, shift, added0, add1, mask, mask_scale, mask_shift, COUT, RELU)
    tl.store(y + at, narrow(v, y.dtype.element_ty), mask=keep)


@triton.jit
def walk(x, weights, x_boxes, y, scale, shift, add0, add1, mask, mask_scale, mask_shift, height, width, runs, rows,
         CIN: tl.constexpr, COUT: tl.constexpr, RELU: tl.constexpr, PRODUCTS: tl.constexpr, BLOCK_K: tl.constexpr,
         BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr, BOXES: tl.constexpr):
    """See `conv3x3`; a block makes `rows` rows of one run of one picture."""
    segments = (height + rows - 1) // rows
    left = tl.program_id(0) % runs * BLOCK_P
    segment = tl.program_id(0) // runs
    picture = segment // segments
    top = segment % segments * rows
    p = tl.arange(0, BLOCK_P)
    m = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    HALF: tl.constexpr = BLOCK_M // 2
    m0 = tl.arange(0, HALF)
    m1 = HALF + m0
    px = left + p
    valid = px < width

    TAP: tl.constexpr = BLOCK_M * BLOCK_K
    a = weights + m[None, :] * BLOCK_K + k[:, None]  # turned around here: within the loop they would be copied anew
    w0 = tl.load(a)
    w1 = tl.load(a + TAP)
    w2 = tl.load(a + 2 * TAP)
    w3 = tl.load(a + 3 * TAP)
    w4 = tl.load(a + 4 * TAP)
    w5 = tl.load(a + 5 * TAP)
    w6 = tl.load(a + 6 * TAP)
    w7 = tl.load(a + 7 * TAP)
    w8 = tl.load(a + 8 * TAP)
    above = tl.zeros((BLOCK_P, BLOCK_M), tl.float32)
    here = tl.zeros((BLOCK_P, BLOCK_M), tl.float32)
    for i in range(rows + 2):
        py = top + i - 1
        line = py + tl.zeros((BLOCK_P,), tl.int32)  # of each pixel: Triton's interpreter cannot mask by a scalar
        start = (picture * height + py).to(tl.int64) * width + left
        if BOXES:
            b0 = x_boxes.load([picture, py, left - 1, 0]).reshape(BLOCK_P, BLOCK_K)
            b1 = x_boxes.load([picture, py, left, 0]).reshape(BLOCK_P, BLOCK_K)
            b2 = x_boxes.load([picture, py, left + 1, 0]).reshape(BLOCK_P, BLOCK_K)
        else:
            inside = valid & (line >= 0) & (line < height)
            channel = (k < CIN)[None, :]
            q = x + start * CIN + p[:, None] * CIN + k[None, :]
            b0 = tl.load(q - CIN, mask=(inside & (px > 0))[:, None] & channel, other=0.0)
            b1 = tl.load(q, mask=inside[:, None] & channel, other=0.0)
            b2 = tl.load(q + CIN, mask=(inside & (px < width - 1))[:, None] & channel, other=0.0)
        # The row that these complete is the one above. Its channels go in halves, for what changes its layout in shared
        # memory must not take much of it; what is added to them comes while products are made.
        inside = (valid & (line > top) & (line <= height))[:, None]
        keep0, keep1 = inside & (m0 < COUT)[None, :], inside & (m1 < COUT)[None, :]
        at = (start - width) * COUT + p[:, None] * COUT
        at0, at1 = at + m0[None, :], at + m1[None, :]
        added0, added1 = add0, add0
        if add0 is not None:
            added0 = tl.load(add0 + at0, mask=keep0, other=0.0)
            added1 = tl.load(add0 + at1, mask=keep1, other=0.0)
        below = tl.zeros((BLOCK_P, BLOCK_M), tl.float32)
        above, here, below = _column(above, here, below, b0, w6, w3, w0, PRODUCTS)
        above, here, below = _column(above, here, below, b1, w7, w4, w1, PRODUCTS)
        above, here, below = _column(above, here, below, b2, w8, w5, w2, PRODUCTS)
        v0, v1 = tl.split(tl.permute(tl.reshape(above, (BLOCK_P, 2, HALF)), (0, 2, 1)))
        _store(v0, at0, m0, keep0, y, scale, shift, added0, add1, mask, mask_scale, mask_shift, COUT, RELU)
        _store(v1, at1, m1, keep1, y, scale, shift, added1, add1, mask, mask_scale, mask_shift, COUT, RELU)
        above = here
        here = below
