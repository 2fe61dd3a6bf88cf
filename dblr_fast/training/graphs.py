"""The passes of a training step, launched call by call or replayed as CUDA graphs.

A pass is what lies between two looks at a step's values: a forward with its losses and the backward of one network's
loss. What follows it, up to the optimiser's step, is launched call by call in either case.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager

import torch
from torch import Tensor

from ..errors import Refusal
from .ranks import Ranks

FRAMES = ("blurred", "sharp")
WARM_UP = 3  # passes before the capture, as many as torch's documentation asks for


def possible(ranks: Ranks) -> bool:
    return ranks.device.type == "cuda" and ranks.world == 1


def require_possible(ranks: Ranks) -> None:
    """Raises Refusal where steps cannot be recorded."""
    if not possible(ranks):
        raise Refusal(f"cuda_graphs needs a GPU and one process, and the device is {ranks.device.type} and the "
                      f"processes are {ranks.world}; leave it at auto")


def wanted(setting: str, ranks: Ranks) -> bool:
    """Whether steps are recorded at a setting of TrainConfig.cuda_graphs."""
    return setting == "always" or setting == "auto" and possible(ranks)


class Passes:
    """Runs passes call by call."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype = device, dtype

    def placed(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """A batch's blurred and sharp frames, on the device."""
        return [batch[name].to(self.device, self.dtype, non_blocking=True) for name in FRAMES]

    def run(self, function, optimiser: torch.optim.Optimizer, frames: list[Tensor]) -> list[Tensor]:
        """function(*frames), which leaves gradients in the optimiser's parameters; those of before are dropped.

        function: a method, the same one in every step. frames: what `placed` has returned.
        """
        optimiser.zero_grad(set_to_none=True)
        return function(*frames)


class RecordedPasses(Passes):
    """Runs passes as graphs: the first steps call by call, the next is captured, and from then on it is replayed.

    A replay reads and writes where the capture did. So frames are copied to one place, results are overwritten by the
    next replay, and gradients, overwritten as well, stay where they are: set to None they would no longer be seen.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, recorder: Recorder):
        super().__init__(device, dtype)
        self.recorder, self.frames = recorder, None
        self.warm, self.replays = Counter(), {}

    def placed(self, batch):
        """Raises Refusal for a batch of another shape than the first."""
        if self.frames is None:
            self.frames = [torch.empty(batch[name].shape, dtype=self.dtype, device=self.device) for name in FRAMES]
        for place, name in zip(self.frames, FRAMES):
            if batch[name].shape != place.shape:
                raise Refusal(f"cuda_graphs needs batches of one shape, and {name} frames of "
                              f"{tuple(batch[name].shape)} follow some of {tuple(place.shape)}; set it to never")
            place.copy_(batch[name], non_blocking=True)
        return self.frames

    def run(self, function, optimiser, frames):
        if self.warm[function] < WARM_UP:
            self.warm[function] += 1
            with self.recorder.aside():
                return super().run(function, optimiser, frames)
        if function not in self.replays:
            optimiser.zero_grad(set_to_none=True)  # backward then makes gradients in the graph's memory
            self.replays[function] = self.recorder.capture(function, frames)
        return self.replays[function]()


class Recorder:
    """Captures work of a GPU; whatever is captured shares one pool of memory, and is replayed in order of capture.

    Warm-up and captures take one side stream, as torch asks for: the legacy stream cannot be captured, and backward
    runs where forward did.
    """

    def __init__(self, device: torch.device):
        self.stream, self.pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    @contextmanager
    def aside(self):
        """Context of warm-up: work of the side stream, after all before it and before all after it."""
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            yield
        current.wait_stream(self.stream)

    def capture(self, function, frames):
        """Captures function(*frames), running nothing; returns what replays it and gives its results."""
        graph = torch.cuda.CUDAGraph()
        # "thread_local": the thread that locks batches in memory may go on with that meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            results = function(*frames)

        def replay():
            graph.replay()
            return results

        return replay
