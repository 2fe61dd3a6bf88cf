"""The folded network in plain torch calls, channels_last, in the precision's dtype: the first peer, and what
torch.compile and TensorRT compile."""

from dataclasses import replace

import processor
import torch

from dblr_fast.backends.torch_backend import TorchNetwork

from . import Missing
from .graph import flat_stem


class Folded(torch.nn.Module):
    """frames: how many the network takes."""

    def __init__(self, folded, frames, precision, device):
        super().__init__()
        reason = processor.lacks_products(precision) if device.type == "cpu" else None
        if reason is not None:
            raise Missing(f"{reason}, and torch emulates them slowly")
        folded = replace(folded, stem=flat_stem(*folded.stem, frames))
        self.network = TorchNetwork(folded, precision, device)

    def forward(self, frames):
        return self.network._run(frames.to(self.network.dtype)).float()


def build(folded, frames, precision):
    return Folded(folded, frames.shape[1], precision, frames.device)
