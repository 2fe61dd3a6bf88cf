"""Training steps to be measured: networks from the same weights, each with its Adam."""

import shutil
import time

import common
import processor
import torch

import dblr_fast
import python_ref
from dblr_fast.backends.planar import planar_stem
from dblr_fast.training.config import DataConfig, ModelConfig, PrecisionConfig, TrainConfig
from dblr_fast.training.ranks import Ranks
from dblr_fast.training.step import Step as TrainingStep

EAGER, COMPILED, OURS, LOOP = "eager torch", "torch.compile", "ours", "ours, training loop"
AUTOCAST = {"none": "off", "half": "fp16", "bf16": "bf16"}


class Missing(Exception):
    """A step cannot be measured here, and why."""


class Step:
    """One network with its optimiser; calling it trains on a batch and returns seconds."""

    def __init__(self, model, device, autocast=None):
        self.model, self.device, self.autocast = model.to(device), device, autocast
        self.optimiser = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True, capturable=device.type == "cuda")

    def restored(self, frames):
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            return self.model(frames)

    def loss(self, frames, target):
        return (self.restored(frames).to(target.dtype) - target).square().mean()

    def results(self, frames, target):
        """(pictures, all gradients in a row) of one batch; leaves no gradient behind."""
        restored = self.restored(frames)
        (restored.to(target.dtype) - target).square().mean().backward()
        gradients = torch.cat([p.grad.detach().flatten() for p in self.model.parameters()])
        self.optimiser.zero_grad(set_to_none=True)
        return restored.detach(), gradients

    def __call__(self, frames, target):
        moments = [self._now()]
        loss = self.loss(frames, target)
        moments.append(self._now())
        loss.backward()
        moments.append(self._now())
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        moments.append(self._now())
        forward, backward, _ = (b - a for a, b in zip(moments, moments[1:]))
        return {"step": moments[-1] - moments[0], "forward": forward, "backward": backward}

    def _now(self):
        common.synchronize(self.device)
        return time.perf_counter()


class LoopStep:
    """The training loop's own step, with its looks at values, the moving average and scaled gradients.

    graph: as cuda_graphs has it. It has trained on the example: graphs come after three steps of warm-up.
    """

    trained = True

    def __init__(self, precision, blocks, device, graph, example):
        config = TrainConfig(
            device=str(device), cuda_graphs="always" if graph else "never", data=DataConfig(crop=example[0].shape[-1]),
            model=ModelConfig(frames=example[0].shape[1], blocks=blocks),
            precision=PrecisionConfig(autocast=AUTOCAST[precision]))
        switches = torch.backends.cudnn, torch.backends.cuda.matmul
        before = [switch.allow_tf32 for switch in switches]
        self.step, self.device, self.number = TrainingStep(config, Ranks(device=device)), device, 0
        for switch, value in zip(switches, before):  # a training's choice, not one for the peers
            switch.allow_tf32 = value
        self.model = self.step.model
        self.model.load_state_dict(network(OURS, blocks).state_dict())
        for _ in range(4):
            self.run(*example)

    def run(self, frames, target):
        self.step({"blurred": frames, "sharp": target, "numbers": torch.arange(len(frames))}, self.number)
        self.number += 1

    def __call__(self, *batch):
        return {"step": common.timed(lambda: self.run(*batch), self.device)}


class DeviceStep(Step):
    """On a GPU: the whole step, launched call by call or replayed as one CUDA graph."""

    def __init__(self, model, device, autocast, graph, example):
        super().__init__(model, device, autocast)
        self.inputs, self.graph, self.trained = [t.clone() for t in example], None, graph
        if not graph:
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.run()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.run()

    def run(self):
        self.optimiser.zero_grad(set_to_none=True)
        self.loss(*self.inputs).backward()
        self.optimiser.step()

    def __call__(self, *batch):
        for mine, new in zip(self.inputs, batch):
            mine.copy_(new)
        return {"step": common.timed(self.graph.replay if self.graph else self.run, self.device)}


def channels_last(model):
    """Its 4-D weights in channels_last; a 5-D one cannot take that format."""
    for p in model.parameters():
        if p.dim() == 4:
            p.data = p.data.contiguous(memory_format=torch.channels_last)
    return model


class PlanarReference(python_ref.DBLRNet):
    """The same with its stem in 2-D: on CPUs with AMX torch 2.13's gradient of a 3-D convolution with one channel
    crashes or hangs in bf16."""

    def stem(self, x):
        w1, b1, w2 = planar_stem(self.conv1.weight, self.conv1.bias, self.conv2.weight)
        return python_ref.stem(x, w1, b1, w2, self.conv2.bias)


def network(name, blocks, planar=False):
    """The network of a candidate in training mode, with the weights that all start from."""
    peer = PlanarReference if planar else python_ref.DBLRNet
    made = (dblr_fast.DBLRNet if name == OURS else peer)(blocks=blocks).train()
    made.load_state_dict(common.random_network(blocks=blocks).state_dict())
    return made if name == OURS else channels_last(made)


def step(name, precision, blocks, device):
    """A Step; precision: "none" (float32), or the type of autocast. Raises Missing."""
    reason = processor.lacks_products(precision) if device.type == "cpu" else None
    if reason is not None:
        raise Missing(f"{reason}, and autocast would emulate them slowly")
    model = network(name, blocks, device.type == "cpu" and precision == "bf16" and processor.has_amx())
    if name == COMPILED:
        if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
            raise Missing("inductor needs a C++ compiler")
        torch._dynamo.config.automatic_dynamic_shapes = False  # every size compiled for itself
        torch._dynamo.config.recompile_limit = 64  # beyond it dynamo would run eager torch and say nothing
        model.compile(dynamic=False)
    return Step(model, device, common.DTYPES.get(precision))


def device_step(name, precision, blocks, device, graph, example):
    """The same on a GPU."""
    made = step(name, precision, blocks, device)
    return DeviceStep(made.model, device, made.autocast, graph, example)


def reference(blocks, frames, target, device):
    """Step.results of python_ref in float64."""
    model = network(EAGER, blocks).to(device).double()
    return Step(model, device).results(frames.double(), target.double())
