"""The folded network in float64, and how far a result is from it."""

import common
import torch
import torch.nn.functional as F

from dblr_fast.tiles import halo_of

from .graph import Conv, nodes


@torch.no_grad()
def restored(folded, frames):
    """(N, T, H, W) -> (N, 1, H, W), every layer in float64."""
    maps = {"frames": frames.double()}
    for node in nodes(folded, frames.shape[1]):
        inputs = [maps[name] for name in node.inputs]
        if isinstance(node, Conv):
            weight, bias = (t.to(frames.device).double() for t in (node.weight, node.bias))
            y = F.conv2d(*inputs, weight, bias, padding=1)
            maps[node.out] = y.relu_() if node.relu else y
        else:
            maps[node.out] = inputs[0] + inputs[1]
    return maps["restored"]


class Crop:
    """The middle of the first picture, at most (height, width) large, computed with all that it sees around it."""

    def __init__(self, folded, frames, size):
        halo, (height, width) = halo_of(len(folded.body)), frames.shape[2:]
        self.place, window, inner = [], [], []
        for whole, wanted in ((height, size[0]), (width, size[1])):
            wanted = min(whole, wanted)
            start = (whole - wanted) // 2
            first = max(0, start - halo)
            self.place.append(slice(start, start + wanted))
            window.append(slice(first, min(whole, start + wanted + halo)))
            inner.append(slice(start - first, start - first + wanted))
        self.wanted = restored(folded, frames[:1, :, window[0], window[1]])[:, :, inner[0], inner[1]]

    def error(self, result):
        """RMS of the difference over the RMS of the float64 network's result."""
        got = result[:1, :, self.place[0], self.place[1]].to(self.wanted.device)
        return common.relative(got, self.wanted)
