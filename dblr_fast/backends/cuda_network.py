"""A folded network on a GPU: weights packed once, one workspace, and a CUDA graph for each size of picture."""

from __future__ import annotations

import torch
from torch import Tensor

from .cuda_call import KINDS, LEVELS, middle_of, padded, up
from .graphed import GraphedRuns
from .planar import planar_stem

class CudaNetwork:
    """See backends.protocol.Network. One call at a time, as the engine makes them.

    The first run of a size launches kernel by kernel, the second records a graph, and those after it replay it;
    DBLR_FAST_GRAPHS=off leaves all launches plain. Calls from different streams wait for one another on the device, for
    they share the workspace. Under a capture of the caller's nothing is shared.
    """

    def __init__(self, backend, folded, precision, device):
        self._backend, self.device = backend, device
        self._kept: list[Tensor] = []  # biases and taps, whose addresses the launches hold
        dtype = LEVELS[precision]
        sm90 = backend.uses_sm90(device) and dtype != torch.float32
        with backend.on(device):
            weights, keep = self._arguments(folded, 4 if dtype == torch.float32 else 8, sm90)
            self._native = backend.module.Network(
                kind=KINDS[dtype], tf32=precision == "fast", sm90=sm90, tail_skip=folded.tail_skip, **weights)
            self._packed = self._allocate(self._native.packed_bytes())
            self._native.pack(self._packed.data_ptr(), backend.stream(device))
            if not backend.emulated:  # runs may come on other streams; and then the weights' memory is free again
                torch.cuda.current_stream(device).synchronize()
            self._kept = keep
        self._workspace, self._graphs = None, GraphedRuns(device)

    def _arguments(self, folded, unit, sm90):
        """(what the extension takes, the vectors among it): channels filled up to a multiple of `unit` with zeros."""
        kept, weights = [], []

        def ready(t, *shape):
            return padded(t.to(self.device, torch.float32), *shape).contiguous()

        def layer(weight, bias, out, inner):
            weights.append(ready(weight, out, inner))
            kept.append(ready(bias, out))
            return weights[-1].data_ptr(), kept[-1].data_ptr()

        w1, b1, w2, b2 = folded.stem
        w1, b1, w2 = planar_stem(w1, b1, w2)
        t1, c1, t2, c2, t3, c3 = folded.tail
        middle = middle_of(w1.shape[0], unit, sm90)
        width, tail = up(w2.shape[0], unit), up(t1.shape[0], unit)
        kept += [ready(t3.reshape(-1, 9).t(), 9, tail), ready(c3, 1)]
        arguments = dict(
            shape=(w1.shape[1], middle, width, tail), taps=kept[0].data_ptr(), tap_bias=kept[1].data_ptr(),
            stem=[layer(w1, b1, middle, w1.shape[1]), layer(w2, b2, width, middle)],
            body=[layer(weight, bias, width, width) for weight, bias in folded.body],
            tail=[layer(t1, c1, tail, width), layer(t2, c2, tail, tail)])
        self._kept = weights  # until they are packed
        return arguments, kept

    def _allocate(self, size: int) -> Tensor:
        return self._backend.allocate(size, self.device)

    def workspace_bytes(self, height, width, most=None):
        return self._native.workspace_bytes(1, height, width)

    def __call__(self, frames, valid, most=None):
        y0, y1, x0, x1 = valid
        h, w = frames.shape[2:]
        if not (0 <= y0 <= y1 <= h and 0 <= x0 <= x1 <= w):
            raise ValueError(f"the part to compute must lie within {h} x {w}, got rows {y0} to {y1}, columns {x0} "
                             f"to {x1}")
        frames = frames.detach().to(self.device, torch.float32)
        with self._backend.on(self.device):
            if self._backend.emulated:
                self._make_room(self._needed(frames))
                return self._plain(frames, self._workspace)[:, :, y0:y1, x0:x1]
            if torch.cuda.is_current_stream_capturing():
                return self._plain(frames, self._allocate(self._needed(frames)))[:, :, y0:y1, x0:x1]
            with self._graphs.in_turn():
                self._make_room(self._needed(frames))
                graph = self._graphs.graph_of(frames, lambda x, y: self._launch(x, y, self._workspace))
                if graph is not None:
                    return graph.replay(frames)[:, :, y0:y1, x0:x1].clone()
                return self._plain(frames, self._workspace)[:, :, y0:y1, x0:x1]

    def _needed(self, frames) -> int:
        n, _, h, w = frames.shape
        return self._native.workspace_bytes(n, h, w)

    def _plain(self, frames, workspace) -> Tensor:
        n, _, h, w = frames.shape
        return self._launch(frames, torch.empty((n, 1, h, w), dtype=torch.float32, device=self.device), workspace)

    def _launch(self, frames, out, workspace) -> Tensor:
        planes = frames.data_ptr(), tuple(frames.shape), frames.stride(), 0
        self._native.run(self._backend.stream(self.device), planes, workspace.data_ptr(),
                         workspace.numel() * workspace.element_size(), out.data_ptr())
        return out

    def _make_room(self, size: int) -> None:
        """A workspace of at least `size` bytes; graphs hold the address of the one they were recorded on."""
        have = self._workspace
        if have is not None and have.numel() * have.element_size() >= size:
            return
        self._forget_graphs()
        self._workspace = have = None  # give back what is too small first
        self._workspace = self._allocate(size)

    def _forget_graphs(self) -> None:
        self._graphs.clear(self._workspace, self._packed, *self._kept)

    def __del__(self):
        if hasattr(self, "_graphs"):
            self._forget_graphs()
