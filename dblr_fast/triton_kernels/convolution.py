"""The 3x3 convolution over maps (N, H, W, C), padding 1 with zeros, with its prologue and epilogue.

An implicit product W (channels x taps*channels) . X^T (taps*channels x pixels): channels are the rows, so that
Hopper takes m64n256k16 for 64 channels and 256 pixels. Pixels are counted through all pictures of a batch, so only
the last block has pixels to spare. Counted: 2 * 9 * CIN * COUT operations a pixel; each pixel is fetched nine times
from the L2 cache (1152 bytes for 64 channels in 16 bits), which bounds a 64->64 layer to about half the unit's rate.

With BOXES pixels and weights come through tensor descriptors: the copy engine (TMA) computes addresses and fills in
the zeros outside the picture, and a block's pixels are a run of one row, so the last run of each row has some to spare.

With WALK a block goes down its run, row by row, and fetches each pixel three times, not nine: see walk.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import tuning
from .common import FLAT, SIZES, block_k, block_m, ceil_div, finish, multiply, narrow, products, source, vector
from .walk import walk

SUMS = ("none", "statistics", "total", "normalised")


@triton.jit
def _tile(x, weights, x_boxes, weight_boxes, y, scale_in, shift_in, scale, shift, add0, add1, mask, mask_scale,
          mask_shift, norm_scale, norm_shift, partial, tap_weights, taps, pixels, height, width, runs,
          CIN: tl.constexpr, COUT: tl.constexpr, PADDED_IN: tl.constexpr, PADDED_OUT: tl.constexpr,
          RELU_IN: tl.constexpr, RELU: tl.constexpr, SUMS: tl.constexpr, PRODUCTS: tl.constexpr,
          BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr, BOXES: tl.constexpr):
    """A tile of BLOCK_P pixels, through all taps before the next."""
    BLOCKS_M: tl.constexpr = (COUT + BLOCK_M - 1) // BLOCK_M
    CHUNKS: tl.constexpr = PADDED_IN // BLOCK_K
    tile = tl.program_id(0) // BLOCKS_M  # blocks that read the same pixels follow one another
    block = tl.program_id(0) % BLOCKS_M
    p = tl.arange(0, BLOCK_P)
    m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    if BOXES:
        row = tile // runs
        left = tile % runs * BLOCK_P
        px = left + p
        py = row % height
        valid = px < width
        start = row.to(tl.int64) * width + left
    else:
        at = tile * BLOCK_P + p
        px = at % width
        py = at // width % height
        valid = at < pixels
        start = tile.to(tl.int64) * BLOCK_P

    x += start * CIN
    acc = tl.zeros((BLOCK_M, BLOCK_P), tl.float32)
    for step in range(9 * CHUNKS):
        tap = step // CHUNKS
        first = step % CHUNKS * BLOCK_K
        c = first + k
        dy = tap // 3 - 1
        dx = tap % 3 - 1
        inside = valid & (py + dy >= 0) & (py + dy < height) & (px + dx >= 0) & (px + dx < width)
        inside = inside[:, None]
        if PADDED_IN != CIN:
            inside = inside & (c < CIN)[None, :]
        if BOXES:
            a = weight_boxes.load([tap * PADDED_OUT + block * BLOCK_M, first])
            b = x_boxes.load([row // height, py + dy, left + dx, first]).reshape(BLOCK_P, BLOCK_K)
        else:
            a = tl.load(weights + (tap * PADDED_OUT + m[:, None]) * PADDED_IN + c[None, :])
            b = tl.load(x + ((p + dy * width + dx) * CIN)[:, None] + c[None, :], mask=inside, other=0.0)
        if scale_in is not None:
            b = source(b, vector(scale_in, c, CIN), vector(shift_in, c, CIN), inside, RELU_IN)
        acc = multiply(a, tl.trans(b), acc, PRODUCTS)

    v = tl.trans(acc)  # (pixels, channels), as maps lie in memory
    channel = m < COUT
    keep = valid[:, None] & channel[None, :]
    at = start * COUT + p[:, None] * COUT + m[None, :]
    if SUMS == "statistics":
        count = tl.minimum(pixels - tile * BLOCK_P, BLOCK_P)  # sums are taken without BOXES
        first = tl.sum(v, 0) / count  # pixels past the end are zero
        off = tl.where(keep, v - first[None, :], 0.0)
        rest = tl.sum(off, 0) / count  # what rounding left of the mean
        second = tl.sum(off * off, 0) - rest * rest * count
        first += rest
    if add0 is not None:
        add0 = tl.load(add0 + at, mask=keep, other=0.0)
    if add1 is not None:
        add1 = tl.load(add1 + at, mask=keep, other=0.0)
    if mask is not None:
        mask = tl.load(mask + at, mask=keep, other=0.0).to(tl.float32)
    v = finish(v, m, scale, shift, add0, add1, mask, mask_scale, mask_shift, COUT, RELU)
    if y is not None:
        tl.store(y + at, narrow(v, y.dtype.element_ty), mask=keep)
    if SUMS == "total" or SUMS == "normalised":
        kept = tl.where(keep, v, 0.0)
        first = tl.sum(kept, 0)
        second = first
        if SUMS == "normalised":
            xhat = mask * vector(norm_scale, m, COUT) + vector(norm_shift, m, COUT)
            second = tl.sum(kept * xhat, 0)
    if SUMS != "none":
        partial += tile.to(tl.int64) * 2 * COUT
        tl.store(partial + m, first, mask=channel)
        tl.store(partial + COUT + m, second, mask=channel)
    if taps is not None:
        nine = tl.arange(0, 16)
        b = tl.load(tap_weights + m[:, None] * 16 + nine[None, :])
        v = narrow(tl.where(keep, v, 0.0), b.dtype)
        planes = multiply(v, b, tl.zeros((BLOCK_P, 16), tl.float32), PRODUCTS)
        taps += start + block.to(tl.int64) * 9 * pixels
        tl.store(taps + p[:, None] + nine[None, :].to(tl.int64) * pixels, planes,
                 mask=valid[:, None] & (nine < 9)[None, :])


@triton.jit(do_not_specialize=SIZES)
def conv3x3(x, weights, x_boxes, weight_boxes, y, scale_in, shift_in, scale, shift, add0, add1, mask, mask_scale,
            mask_shift, norm_scale, norm_shift, partial, tap_weights, taps, pixels, height, width, runs, rows,
            CIN: tl.constexpr, COUT: tl.constexpr, PADDED_IN: tl.constexpr, PADDED_OUT: tl.constexpr,
            RELU_IN: tl.constexpr, RELU: tl.constexpr, SUMS: tl.constexpr, PRODUCTS: tl.constexpr,
            BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr, BOXES: tl.constexpr,
            WALK: tl.constexpr):
    """y = mask(act(conv(act(x * scale_in + shift_in)) * scale + shift) + add0 + add1); None leaves a step out.

    weights: (9, PADDED_OUT, PADDED_IN). x_boxes, weight_boxes: descriptors of both, with BOXES; runs: how many of
    BLOCK_P pixels make a row; rows: that a block walks, with WALK, which takes neither scale_in, partial nor taps.
    The mask keeps a value where mask (* mask_scale + mask_shift) is above 0.
    partial (tiles, 2, COUT): "statistics" mean and sum of squared deviations of the products' sums, "total" the sum
    of y, "normalised" the sums of y and y * (mask * norm_scale + norm_shift), each over the tile's pixels.
    taps (PADDED_OUT / BLOCK_M, 9, pixels): y contracted with tap_weights (PADDED_OUT, 16), channels of the block.
    """
    if WALK:
        walk(x, weights, x_boxes, y, scale, shift, add0, add1, mask, mask_scale, mask_shift, height, width, runs, rows,
             CIN, COUT, RELU, PRODUCTS, BLOCK_K, BLOCK_M, BLOCK_P, BOXES)
    else:
        _tile(x, weights, x_boxes, weight_boxes, y, scale_in, shift_in, scale, shift, add0, add1, mask, mask_scale,
              mask_shift, norm_scale, norm_shift, partial, tap_weights, taps, pixels, height, width, runs, CIN, COUT,
              PADDED_IN, PADDED_OUT, RELU_IN, RELU, SUMS, PRODUCTS, BLOCK_K, BLOCK_M, BLOCK_P, BOXES)


@triton.jit(do_not_specialize=SIZES)
def pack(weight, packed, count, OUT: tl.constexpr, IN: tl.constexpr, PADDED_OUT: tl.constexpr,
         PADDED_IN: tl.constexpr, ADJOINT: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i = at % PADDED_IN
    o = at // PADDED_IN % PADDED_OUT
    tap = at // PADDED_IN // PADDED_OUT
    if ADJOINT:
        address = (i * OUT + o) * 9 + 8 - tap
    else:
        address = (o * IN + i) * 9 + tap
    v = tl.load(weight + address, mask=(i < IN) & (o < OUT) & (at < count), other=0.0)
    tl.store(packed + at, narrow(v.to(tl.float32), packed.dtype.element_ty), mask=at < count)


@dataclass(frozen=True)
class Packed:
    """3x3 weights ready for `convolve`: (9, out, in), both sides padded with zeros."""
    data: Tensor
    out: int
    inner: int


def pack_weights(weight: Tensor, dtype: torch.dtype, adjoint: bool = False) -> Packed:
    """weight (out, in, 3, 3). adjoint: the data gradient's filter, taps turned around, `out` and `in` exchanged."""
    weight = weight.contiguous()
    out, inner = weight.shape[:2]
    if adjoint:
        out, inner = inner, out
    step_m, step_k = block_m(out), block_k(dtype, inner)
    padded_out, padded_in = ceil_div(out, step_m) * step_m, ceil_div(inner, step_k) * step_k
    data = torch.empty((9, padded_out, padded_in), dtype=dtype, device=weight.device)
    tuning.launch(pack, ceil_div(data.numel(), FLAT), dict(
        weight=weight, packed=data, count=data.numel(), OUT=out, IN=inner, PADDED_OUT=padded_out,
        PADDED_IN=padded_in, ADJOINT=adjoint, BLOCK=FLAT))
    return Packed(data, out, inner)


@dataclass
class Norm:
    """A batch norm's vectors, all float32 (C,): y = z * scale + shift, xhat = z * invstd + offset."""
    scale: Tensor
    shift: Tensor
    invstd: Tensor
    offset: Tensor


@dataclass
class Convolved:
    """What `convolve` leaves; None is what was not asked for."""
    y: Tensor | None  # (N, H, W, out)
    partial: Tensor | None  # (tiles, 2, out) float32
    tile: int  # pixels of each tile, the last of which may have less
    taps: Tensor | None  # (blocks of channels, 9, N, H, W) float32


def _descriptor(t: Tensor, box: list[int]) -> TensorDescriptor:
    return TensorDescriptor(t, list(t.shape), list(t.stride()), box)


def blocks_of_taps(weights: Packed, tf32: bool) -> int:
    """How many planes a tap has."""
    data = weights.data
    option = tuning.convolution(data.dtype, weights.out, tf32, False, True, 0, 0, data.device)[0]
    return ceil_div(weights.out, option["BLOCK_M"])


def convolve(x: Tensor, weights: Packed, *, norm_in: Norm | None = None, relu_in: bool = False,
             scale: Tensor | None = None, shift: Tensor | None = None, relu: bool = False,
             add: tuple[Tensor, ...] = (), mask: Tensor | None = None, mask_norm: Norm | None = None,
             sums: str = "none", tap_weights: Tensor | None = None, keep: bool = True, tf32: bool = False
             ) -> Convolved:
    """The kernel above over x (N, H, W, C), dense. y is left out unless `keep`.

    norm_in, relu_in: what x goes through when it is read. With mask_norm the mask is normalised first; "normalised"
    sums need both.
    """
    n, h, w, _ = x.shape
    pixels, out = n * h * w, weights.out
    boxed = pixels and sums == "none" and x.shape[3] * x.dtype.itemsize % 16 == 0 and x.data_ptr() % 16 == 0
    walked = pixels and keep and norm_in is None and weights.data.shape[2] == block_k(x.dtype, weights.inner)
    options = tuning.convolution(x.dtype, out, tf32, sums != "none", tap_weights is not None, w * bool(boxed),
                                 w * bool(walked), x.device)
    tile = options[0]["BLOCK_P"]
    y = torch.empty((n, h, w, out), dtype=x.dtype, device=x.device) if keep else None
    partial = taps = None
    if sums != "none":
        partial = torch.empty((ceil_div(pixels, tile), 2, out), device=x.device)
    if tap_weights is not None:
        taps = torch.empty((ceil_div(out, options[0]["BLOCK_M"]), 9, n, h, w), device=x.device)
    add0, add1 = (*add, None, None)[:2]
    normalised, step = sums == "normalised", block_k(x.dtype, weights.inner)

    def runs(o):
        return ceil_div(w, o["BLOCK_P"])

    def rows(o):
        return tuning.rows_to_walk(n * runs(o), h, tuning.device_facts(x.device).multiprocessors)

    def tiles(o):
        if o["WALK"]:
            return n * runs(o) * ceil_div(h, rows(o))
        return n * h * runs(o) if o["BOXES"] else ceil_div(pixels, o["BLOCK_P"])

    tuning.launch(
        conv3x3, lambda o: tiles(o) * ceil_div(out, o["BLOCK_M"]), dict(
            x=x, weights=weights.data,
            x_boxes=lambda o: _descriptor(x, [1, 1, o["BLOCK_P"], step]) if o["BOXES"] else None,
            weight_boxes=lambda o: (
                _descriptor(weights.data.flatten(0, 1), [o["BLOCK_M"], step]) if o["BOXES"] else None),
            runs=runs, rows=rows, y=y,
            scale_in=norm_in and norm_in.scale, shift_in=norm_in and norm_in.shift,
            scale=scale, shift=shift, add0=add0, add1=add1, mask=mask, mask_scale=mask_norm and mask_norm.scale,
            mask_shift=mask_norm and mask_norm.shift, norm_scale=mask_norm.invstd if normalised else None,
            norm_shift=mask_norm.offset if normalised else None, partial=partial, tap_weights=tap_weights, taps=taps,
            pixels=pixels, height=h, width=w, CIN=weights.inner, COUT=out, PADDED_IN=weights.data.shape[2],
            PADDED_OUT=weights.data.shape[1], RELU_IN=relu_in, RELU=relu, SUMS=sums,
            PRODUCTS=products(x.dtype, tf32), BLOCK_K=step), options)
    return Convolved(y, partial, tile, taps)


def pack_taps(w3: Tensor, dtype: torch.dtype) -> Tensor:
    """w3 (1, K, 3, 3) -> (K padded, 16): the tap weights of `conv3x3`."""
    channels = w3.shape[1]
    step = block_m(channels)
    return torch.nn.functional.pad(w3[0].flatten(1).to(dtype), (0, 7, 0, ceil_div(channels, step) * step - channels))
