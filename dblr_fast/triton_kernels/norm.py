"""Batch norm over dense maps (N, H, W, C): statistics merged, coefficients, normalising, and its backward.

Work by the pixel, bound by bytes: each map is read or written once. Partial sums are float32, one row for each tile
of pixels, and are merged in float64 in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tuning
from .common import SIZES, ceil_div, narrow, power_of_2, relu
from .convolution import Norm

MERGED = 128  # rows of partial sums that a step of a merge takes
CHANNELS = 8  # channels that a block of a merge takes
ROWS = 512  # pixels that a block of a backward sum takes


@triton.jit
def _coefficients(gamma, beta, bias, mean, var, scale, shift, invstd, offset, c, keep, eps, TRAINING: tl.constexpr):
    """scale, shift for y = z * scale + shift; invstd, offset for xhat = z * invstd + offset; mean, var in float64."""
    inverse = 1.0 / tl.sqrt(var + eps)
    if not TRAINING:  # the running mean holds the bias, z does not
        mean -= tl.load(bias + c, mask=keep, other=0.0).to(tl.float64)
    scaled = tl.load(gamma + c, mask=keep, other=0.0).to(tl.float64) * inverse
    tl.store(scale + c, scaled.to(tl.float32), mask=keep)
    shifted = tl.load(beta + c, mask=keep, other=0.0).to(tl.float64) - mean * scaled
    tl.store(shift + c, shifted.to(tl.float32), mask=keep)
    tl.store(invstd + c, inverse.to(tl.float32), mask=keep)
    tl.store(offset + c, (-mean * inverse).to(tl.float32), mask=keep)


@triton.jit(do_not_specialize=SIZES)
def norm_coefficients(gamma, beta, bias, mean, var, scale, shift, invstd, offset, eps, C: tl.constexpr,
                      TRAINING: tl.constexpr, BLOCK: tl.constexpr):
    c = tl.arange(0, BLOCK)
    keep = c < C
    _coefficients(gamma, beta, bias, tl.load(mean + c, mask=keep, other=0.0).to(tl.float64),
                  tl.load(var + c, mask=keep, other=0.0).to(tl.float64), scale, shift, invstd, offset, c, keep, eps,
                  TRAINING)


@triton.jit(do_not_specialize=SIZES)
def merge_statistics(partial, gamma, beta, mean, var, scale, shift, invstd, offset, tiles, pixels, eps,
                     C: tl.constexpr, TILE: tl.constexpr, MERGED: tl.constexpr, CHANNELS: tl.constexpr):
    """Means and sums of squared deviations of tiles of TILE pixels (the last may have less) -> those of all pixels."""
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    keep = c < C
    row = tl.arange(0, MERGED)
    total = tl.zeros((MERGED, CHANNELS), tl.float64)
    for start in range(0, tiles, MERGED):
        t = start + row
        there = (t < tiles)[:, None] & keep[None, :]
        count = tl.minimum(pixels - t * TILE, TILE).to(tl.float64)[:, None]
        total += tl.load(partial + (t * 2 * C)[:, None] + c[None, :], mask=there, other=0.0).to(tl.float64) * count
    average = tl.sum(total, 0) / pixels
    total = tl.zeros((MERGED, CHANNELS), tl.float64)
    for start in range(0, tiles, MERGED):
        t = start + row
        there = (t < tiles)[:, None] & keep[None, :]
        count = tl.minimum(pixels - t * TILE, TILE).to(tl.float64)[:, None]
        off = tl.load(partial + (t * 2 * C)[:, None] + c[None, :], mask=there, other=0.0).to(tl.float64)
        off -= average[None, :]
        squares = tl.load(partial + (t * 2 * C + C)[:, None] + c[None, :], mask=there, other=0.0).to(tl.float64)
        total += tl.where(there, squares + off * off * count, 0.0)
    variance = tl.sum(total, 0) / pixels
    tl.store(mean + c, average.to(tl.float32), mask=keep)
    tl.store(var + c, variance.to(tl.float32), mask=keep)
    _coefficients(gamma, beta, gamma, average, variance, scale, shift, invstd, offset, c, keep, eps, True)


@triton.jit(do_not_specialize=SIZES)
def merge_sums(partial, first, second, tiles, C: tl.constexpr, MERGED: tl.constexpr, CHANNELS: tl.constexpr):
    """(tiles, 2, C) -> the two sums over tiles."""
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    keep = c < C
    row = tl.arange(0, MERGED)
    total = tl.zeros((MERGED, CHANNELS), tl.float64)
    other = tl.zeros((MERGED, CHANNELS), tl.float64)
    for start in range(0, tiles, MERGED):
        t = start + row
        there = (t < tiles)[:, None] & keep[None, :]
        total += tl.load(partial + (t * 2 * C)[:, None] + c[None, :], mask=there, other=0.0).to(tl.float64)
        other += tl.load(partial + (t * 2 * C + C)[:, None] + c[None, :], mask=there, other=0.0).to(tl.float64)
    tl.store(first + c, tl.sum(total, 0).to(tl.float32), mask=keep)
    tl.store(second + c, tl.sum(other, 0).to(tl.float32), mask=keep)


@triton.jit(do_not_specialize=SIZES)
def norm_apply(z, scale, shift, add, y, pixels, C: tl.constexpr, RELU: tl.constexpr, BLOCK_C: tl.constexpr,
               BLOCK_P: tl.constexpr):
    """y = act(z * scale + shift) + add."""
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.arange(0, BLOCK_C)
    channel = c < C
    keep = (p < pixels)[:, None] & channel[None, :]
    at = p.to(tl.int64)[:, None] * C + c[None, :]
    v = tl.load(z + at, mask=keep, other=0.0).to(tl.float32)
    v = v * tl.load(scale + c, mask=channel, other=0.0)[None, :] + tl.load(shift + c, mask=channel, other=0.0)[None, :]
    if RELU:
        v = relu(v)
    if add is not None:
        v += tl.load(add + at, mask=keep, other=0.0).to(tl.float32)
    tl.store(y + at, narrow(v, y.dtype.element_ty), mask=keep)


@triton.jit
def _masked(grad, z, scale, shift, at, c, channel, keep, MASK: tl.constexpr):
    """(gradient behind the ReLU, z), float32. MASK: "none", "sign" (z above 0), "norm" (z * scale + shift above 0)."""
    g = tl.load(grad + at, mask=keep, other=0.0).to(tl.float32)
    v = tl.load(z + at, mask=keep, other=0.0).to(tl.float32)
    if MASK == "sign":
        g = tl.where(v > 0, g, 0.0)
    if MASK == "norm":
        sign = v * tl.load(scale + c, mask=channel, other=0.0)[None, :] + tl.load(
            shift + c, mask=channel, other=0.0)[None, :]
        g = tl.where(sign > 0, g, 0.0)
    return g, v


@triton.jit(do_not_specialize=SIZES)
def norm_backward_sums(grad, z, scale, shift, invstd, offset, masked, partial, pixels, C: tl.constexpr,
                       MASK: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """partial (tiles of ROWS pixels, 2, C): sums of g and g * xhat (without invstd, g twice); masked takes g."""
    tile = tl.program_id(0)
    c = tl.arange(0, BLOCK_C)
    channel = c < C
    first = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    second = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for start in range(0, ROWS, BLOCK_P):
        p = tile * ROWS + start + tl.arange(0, BLOCK_P)
        keep = (p < pixels)[:, None] & channel[None, :]
        at = p.to(tl.int64)[:, None] * C + c[None, :]
        g, v = _masked(grad, z, scale, shift, at, c, channel, keep, MASK)
        if masked is not None:
            tl.store(masked + at, narrow(g, masked.dtype.element_ty), mask=keep)
        first += g
        if invstd is not None:
            xhat = v * tl.load(invstd + c, mask=channel, other=0.0)[None, :] + tl.load(
                offset + c, mask=channel, other=0.0)[None, :]
            second += g * xhat
    partial += tile.to(tl.int64) * 2 * C
    sums = tl.sum(first.to(tl.float64), 0).to(tl.float32)
    tl.store(partial + c, sums, mask=channel)
    if invstd is not None:
        sums = tl.sum(second.to(tl.float64), 0).to(tl.float32)
    tl.store(partial + C + c, sums, mask=channel)


@triton.jit(do_not_specialize=SIZES)
def norm_backward_apply(grad, z, scale, shift, invstd, offset, dbeta, dgamma, dz, pixels, C: tl.constexpr,
                        MASK: tl.constexpr, TRAINING: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """dz = scale * (g - (dbeta + xhat * dgamma) / pixels) in training, scale * g in evaluation."""
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.arange(0, BLOCK_C)
    channel = c < C
    keep = (p < pixels)[:, None] & channel[None, :]
    at = p.to(tl.int64)[:, None] * C + c[None, :]
    g, v = _masked(grad, z, scale, shift, at, c, channel, keep, MASK)
    if TRAINING:
        xhat = v * tl.load(invstd + c, mask=channel, other=0.0)[None, :] + tl.load(
            offset + c, mask=channel, other=0.0)[None, :]
        sums = tl.load(dbeta + c, mask=channel, other=0.0)[None, :] + xhat * tl.load(
            dgamma + c, mask=channel, other=0.0)[None, :]
        g -= sums / pixels
    g *= tl.load(scale + c, mask=channel, other=0.0)[None, :]
    tl.store(dz + at, narrow(g, dz.dtype.element_ty), mask=keep)


def _pixels(z: Tensor) -> int:
    return z.numel() // z.shape[-1]


def _block(channels: int) -> dict:
    """BLOCK_C channels by BLOCK_P pixels: 4096 elements, 32 for each thread."""
    columns = power_of_2(channels)
    return dict(BLOCK_C=columns, BLOCK_P=max(4096 // columns, 1))


def _norm(channels: int, device) -> Norm:
    return Norm(*torch.empty((4, channels), device=device))


def coefficients(gamma: Tensor, beta: Tensor, bias: Tensor, mean: Tensor, var: Tensor, training: bool,
                 eps: float) -> Norm:
    """mean, var: with training the batch's of z, else the running ones of z + bias."""
    norm = _norm(len(gamma), gamma.device)
    tuning.launch(norm_coefficients, 1, dict(
        gamma=gamma, beta=beta, bias=bias, mean=mean, var=var, **vars(norm), eps=eps, C=len(gamma), TRAINING=training,
        BLOCK=power_of_2(len(gamma))))
    return norm


def statistics(partial: Tensor, pixels: int, tile: int, gamma: Tensor, beta: Tensor, eps: float
               ) -> tuple[Tensor, Tensor, Norm]:
    """(mean, biased variance, coefficients) of `convolve`'s partial statistics over tiles of `tile` pixels."""
    tiles, _, channels = partial.shape
    mean, var = (torch.empty(channels, device=partial.device) for _ in range(2))  # an op's outputs share no memory
    norm = _norm(channels, partial.device)
    tuning.launch(merge_statistics, ceil_div(channels, CHANNELS), dict(
        partial=partial, gamma=gamma, beta=beta, mean=mean, var=var, **vars(norm), tiles=tiles, pixels=pixels, eps=eps,
        C=channels, TILE=tile, MERGED=MERGED, CHANNELS=CHANNELS))
    return mean, var, norm


def sums(partial: Tensor) -> tuple[Tensor, Tensor]:
    """The two sums over all tiles, float32 (C,)."""
    tiles, _, channels = partial.shape
    first, second = (torch.empty(channels, device=partial.device) for _ in range(2))
    tuning.launch(merge_sums, ceil_div(channels, CHANNELS), dict(
        partial=partial, first=first, second=second, tiles=tiles, C=channels, MERGED=MERGED, CHANNELS=CHANNELS))
    return first, second


def apply(z: Tensor, norm: Norm, relu: bool, add: Tensor | None) -> Tensor:
    y, block = torch.empty_like(z), _block(z.shape[-1])
    tuning.launch(norm_apply, ceil_div(_pixels(z), block["BLOCK_P"]), dict(
        z=z, scale=norm.scale, shift=norm.shift, add=add, y=y, pixels=_pixels(z), C=z.shape[-1], RELU=relu, **block))
    return y


def backward_sums(grad: Tensor, z: Tensor, norm: Norm | None, mask: str, masked: Tensor | None = None
                  ) -> tuple[Tensor, Tensor]:
    """(sum of g, sum of g * xhat), g the masked gradient; without norm the sum of g twice."""
    pixels, channels, block = _pixels(z), z.shape[-1], _block(z.shape[-1])
    tiles = ceil_div(pixels, ROWS)
    partial = torch.empty((tiles, 2, channels), device=z.device)
    vectors = dict(vars(norm)) if norm else dict(scale=None, shift=None, invstd=None, offset=None)
    tuning.launch(norm_backward_sums, tiles, dict(
        grad=grad, z=z, **vectors, masked=masked, partial=partial, pixels=pixels, C=channels, MASK=mask, ROWS=ROWS,
        **block))
    return sums(partial)


def backward_apply(grad: Tensor, z: Tensor, norm: Norm, dbeta: Tensor, dgamma: Tensor, mask: str,
                   training: bool) -> Tensor:
    dz, block = torch.empty_like(z), _block(z.shape[-1])
    tuning.launch(norm_backward_apply, ceil_div(_pixels(z), block["BLOCK_P"]), dict(
        grad=grad, z=z, **vars(norm), dbeta=dbeta, dgamma=dgamma, dz=dz, pixels=_pixels(z), C=z.shape[-1], MASK=mask,
        TRAINING=training, **block))
    return dz
