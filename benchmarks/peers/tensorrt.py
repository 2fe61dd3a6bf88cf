"""Torch-TensorRT on a GPU."""

from .torch_eager import Folded


def build(folded, frames, precision):
    import torch_tensorrt

    module = Folded(folded, frames.shape[1], precision, frames.device)
    return torch_tensorrt.compile(module, inputs=[frames], enabled_precisions={module.network.dtype})
