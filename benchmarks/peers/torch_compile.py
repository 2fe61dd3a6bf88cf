"""torch.compile: on a CPU inductor with freezing (weights packed for oneDNN), on a GPU max-autotune."""

import shutil

import torch

from . import Missing
from .torch_eager import Folded


class Parameters(torch.nn.Module):
    """The folded network with its weights as parameters, which freezing asks for."""

    def __init__(self, folded, frames, precision, device):
        super().__init__()
        inner = Folded(folded, frames, precision, device).network

        def kept(*tensors):
            return torch.nn.ParameterList([torch.nn.Parameter(t, requires_grad=False) for t in tensors])

        inner.stem, inner.tail = kept(*inner.stem), kept(*inner.tail)
        inner.body = [kept(*pair) for pair in inner.body]
        self.weights = torch.nn.ModuleList([inner.stem, *inner.body, inner.tail])
        self.inner = inner

    def forward(self, frames):
        return self.inner._run(frames.to(self.inner.dtype)).float()


def build(folded, frames, precision):
    if frames.device.type != "cpu":
        return torch.compile(Folded(folded, frames.shape[1], precision, frames.device), mode="max-autotune")
    if not (shutil.which("g++") or shutil.which("clang++")):
        raise Missing("inductor needs a C++ compiler")
    import torch._inductor.config as inductor

    inductor.freezing = True  # what TORCHINDUCTOR_FREEZING=1 sets
    torch._dynamo.config.automatic_dynamic_shapes = False  # every size compiled for itself
    torch._dynamo.config.recompile_limit = 64  # beyond it dynamo would run eager torch and say nothing
    return torch.compile(Parameters(folded, frames.shape[1], precision, frames.device).eval(), dynamic=False)
