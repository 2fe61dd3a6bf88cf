"""CUDA graphs of a network's launches, one for each size of picture."""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from contextlib import contextmanager, suppress
from typing import Callable

import torch
from torch import Tensor

GRAPHS = 16  # sizes whose graph is kept; a tiled picture has nine at most


def wanted() -> bool:
    """Whether launches are recorded at all: DBLR_FAST_GRAPHS=off leaves them plain."""
    return os.environ.get("DBLR_FAST_GRAPHS", "").lower() not in ("off", "0", "false", "no")


class Graph:
    """The launches of one size, recorded over input and output of their own."""

    def __init__(self, frames: Tensor, launch: Callable[[Tensor, Tensor], None], device, pool=None):
        """launch(frames, out) queues the launches.

        pool: the graphs' that share what memory the launches take of torch's; None where they take none. Such launches
        are made once before, so that nothing is compiled or chosen while they are recorded.
        """
        n, _, h, w = frames.shape
        with torch.inference_mode(False):  # they outlive the caller's mode
            self.frames = torch.empty(frames.shape, dtype=torch.float32, device=frames.device)
            self.out = torch.empty((n, 1, h, w), dtype=torch.float32, device=frames.device)
        if pool is not None:
            launch(self.frames, self.out)
        self._graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
        side = torch.cuda.Stream(device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            self._graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                launch(self.frames, self.out)
            except BaseException:
                with suppress(RuntimeError):  # that of the launch says more
                    self._graph.capture_end()
                raise
            self._graph.capture_end()
        current.wait_stream(side)

    def replay(self, frames: Tensor) -> Tensor:
        """What the launches give, in memory that the next replay writes."""
        self.frames.copy_(frames)
        self._graph.replay()
        return self.out


class GraphedRuns:
    """The graphs of one network on one GPU. One call at a time, on any stream, each `in_turn`."""

    def __init__(self, device):
        self.device = device
        self._graphs: OrderedDict[tuple, Graph | None] = OrderedDict()
        self._last = self._stream = None  # of the latest call

    def __len__(self) -> int:
        """How many have been recorded."""
        return sum(graph is not None for graph in self._graphs.values())

    @contextmanager
    def in_turn(self):
        """What is queued inside runs after what was queued inside before, whatever the streams."""
        self._stream = torch.cuda.current_stream(self.device)
        if self._last is None:
            self._last = torch.cuda.Event()
        else:
            self._stream.wait_event(self._last)
        try:
            yield
        finally:
            self._last.record(self._stream)

    def graph_of(self, frames: Tensor, launch, pool=None) -> Graph | None:
        """The graph of this size: none where it comes for the first time, then recorded, and kept."""
        if not wanted():
            return None
        key = tuple(frames.shape)
        if key not in self._graphs:
            self._graphs[key] = None
            while len(self._graphs) > GRAPHS:
                self._graphs.popitem(last=False)
            return None
        self._graphs.move_to_end(key)
        if self._graphs[key] is None:
            self._graphs[key] = Graph(frames, launch, self.device, pool)
        return self._graphs[key]

    def clear(self, *used: Tensor | None) -> None:
        """Forgets all graphs. Their memory, and that of tensors which launches have used, is not handed out again
        before the last stream that used it is done."""
        buffers = [t for graph in self._graphs.values() if graph is not None for t in (graph.frames, graph.out)]
        self._graphs.clear()
        for t in (*used, *buffers):
            if t is not None and self._stream is not None:
                t.record_stream(self._stream)

    def __del__(self):
        if hasattr(self, "_stream"):
            self.clear()


class RecordedIfPossible(GraphedRuns):
    """The same for launches that take memory of torch's and cannot be known to be recordable."""

    def __init__(self, device):
        super().__init__(device)
        self._plain, self._pool = False, None

    def graph_of(self, frames, launch):
        """None, after a warning, once recording has failed."""
        if self._plain:
            return None
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            return super().graph_of(frames, launch, self._pool)
        except RuntimeError as error:
            self._plain = True
            warnings.warn(f"launches of {frames.shape[3]}x{frames.shape[2]} could not be recorded as a CUDA graph "
                          f"({error}); they stay plain, which is slower for small pictures", RuntimeWarning)
            return None
