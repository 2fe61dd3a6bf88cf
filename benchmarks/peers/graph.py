"""The folded network as a list of 2-D convolutions and additions: what ONNX and ncnn files are written from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Conv(NamedTuple):
    """out = conv3x3(inputs[0]), zero padding 1, with ReLU or not; weight (O, I, 3, 3), bias (O,)."""

    out: str
    inputs: tuple[str]
    weight: Tensor
    bias: Tensor
    relu: bool


class Add(NamedTuple):
    out: str
    inputs: tuple[str, str]


def flat_stem(w1, b1, w2, b2, frames):
    """The two 3-D convolutions of the stem over all times at once, as 2-D ones; 2-D ones as they are.

    Output time t of L1 sees frames t..t+2: one 2-D convolution from all frames, zero elsewhere (5/3 of L1's
    operations, 0.03 % of the network's). L2 takes all times, so its weights only change shape.
    """
    if w1.dim() == 4:
        return w1, b1, w2, b2
    channels, _, depth, *window = w1.shape
    times = frames - depth + 1
    flat = w1.new_zeros(channels, times, frames, *window)
    for t in range(times):
        flat[:, t, t:t + depth] = w1[:, 0]
    return flat.flatten(0, 1), b1.repeat_interleave(times), w2.flatten(1, 2), b2


def nodes(folded, frames):
    """[Conv or Add] in order of running, from "frames" (N, frames, H, W) to "restored" (N, 1, H, W)."""
    found, y = [], "frames"

    def conv(x, weight, bias, relu, out=None):
        found.append(Conv(out or f"c{len(found)}", (x,), weight, bias, relu))
        return found[-1].out

    def add(a, b):
        found.append(Add(f"a{len(found)}", (a, b)))
        return found[-1].out

    w1, b1, w2, b2 = flat_stem(*folded.stem, frames)
    y = skip = conv(conv(y, w1, b1, True), w2, b2, True)
    for first, second in zip(folded.body[:-2:2], folded.body[1:-2:2]):
        y = add(conv(conv(y, *first, True), *second, False), y)
    if folded.tail_skip:
        skip = add(skip, y)
    first, second = folded.body[-2:]
    y = add(conv(conv(y, *first, True), *second, False), skip)
    w1, b1, w2, b2, w3, b3 = folded.tail
    conv(conv(conv(y, w1, b1, True), w2, b2, True), w3, b3, False, "restored")
    return found


def numpy(tensor):
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()
