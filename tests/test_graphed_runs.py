"""When a network's launches are recorded and replayed, on a stand-in for CUDA's graphs and streams."""

import contextlib

import pytest
import torch

from dblr_fast.backends import graphed

FRAMES = {size: torch.rand(1, 5, *size) for size in ((4, 6), (5, 7))}


class FakeGraph:
    """Replays by launching again, as if from the record."""

    current = None
    pools = []

    def capture_begin(self, pool=None, capture_error_mode=None):
        FakeGraph.current, self.launches = self, []
        FakeGraph.pools.append(pool)

    def capture_end(self):
        FakeGraph.current = None

    def replay(self):
        for launch in self.launches:
            launch()


class FakeStream:
    def wait_stream(self, other):
        pass

    def wait_event(self, event):
        pass


class FakeEvent:
    def record(self, stream):
        pass


class Network:
    """Sums the frames; counts its launches from the host."""

    def __init__(self, error=None):
        self.count, self.error = 0, error

    def launch(self, frames, out):
        self.count += 1
        if FakeGraph.current is not None:
            if self.error is not None:
                raise self.error
            FakeGraph.current.launches.append(lambda: out.copy_(frames.sum(1, keepdim=True)))
        out.copy_(frames.sum(1, keepdim=True))

    def run(self, graphs, size):
        """As the backends run their networks; checked."""
        frames = FRAMES[size] + self.count
        with graphs.in_turn():
            graph = graphs.graph_of(frames, self.launch)
            if graph is None:
                out = torch.empty(1, 1, *size)
                self.launch(frames, out)
            else:
                out = graph.replay(frames).clone()
        assert torch.equal(out, frames.sum(1, keepdim=True))


@pytest.fixture(autouse=True)
def cuda(monkeypatch):
    monkeypatch.delenv("DBLR_FAST_GRAPHS", raising=False)
    monkeypatch.setattr(FakeGraph, "pools", [])
    for name, fake in {"CUDAGraph": FakeGraph, "Stream": lambda device: FakeStream(), "Event": FakeEvent,
                       "current_stream": lambda device: FakeStream(), "graph_pool_handle": lambda: (0, 1),
                       "stream": lambda stream: contextlib.nullcontext()}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda t, stream: None)


@pytest.mark.parametrize("kind", (graphed.GraphedRuns, graphed.RecordedIfPossible))
def test_plain_then_recorded_then_replayed(kind):
    graphs, network = kind("cuda"), Network()
    each = 3 if kind is graphed.RecordedIfPossible else 2  # plain, (once before it is recorded,) recorded
    for launches, recorded in ((1, 0), (each, 1), (each, 1), (each, 1)):
        network.run(graphs, (4, 6))
        assert (network.count, len(graphs)) == (launches, recorded)
    network.run(graphs, (5, 7))
    network.run(graphs, (5, 7))
    assert (network.count, len(graphs)) == (2 * each, 2)
    assert FakeGraph.pools == [(0, 1) if kind is graphed.RecordedIfPossible else None] * 2
    graphs.clear()
    assert len(graphs) == 0


def test_switched_off(monkeypatch):
    monkeypatch.setenv("DBLR_FAST_GRAPHS", "off")
    graphs, network = graphed.GraphedRuns("cuda"), Network()
    for _ in range(3):
        network.run(graphs, (4, 6))
    assert (network.count, len(graphs)) == (3, 0)


def test_as_many_sizes_as_are_kept(monkeypatch):
    monkeypatch.setattr(graphed, "GRAPHS", 1)
    graphs, network = graphed.GraphedRuns("cuda"), Network()
    for size in ((4, 6), (4, 6), (5, 7), (4, 6)):
        network.run(graphs, size)
    assert (network.count, len(graphs)) == (4, 0)


def test_what_cannot_be_recorded_stays_plain_after_a_warning():
    graphs, network = graphed.RecordedIfPossible("cuda"), Network(torch.OutOfMemoryError("no memory left"))
    network.run(graphs, (4, 6))
    with pytest.warns(RuntimeWarning, match="launches of 6x4 could not be recorded as a CUDA graph .no memory left.; "):
        network.run(graphs, (4, 6))
    assert FakeGraph.current is None  # the capture was ended
    network.run(graphs, (4, 6))
    assert (network.count, len(graphs)) == (5, 0)  # two of them in vain
    graphs, network = graphed.GraphedRuns("cuda"), Network(torch.OutOfMemoryError("no memory left"))
    network.run(graphs, (4, 6))
    with pytest.raises(torch.OutOfMemoryError):
        network.run(graphs, (4, 6))
