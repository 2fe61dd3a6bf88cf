"""ONNX Runtime on the CPU, float32, all graph optimisations."""

import torch

from .onnx_file import serialized


def build(folded, frames, precision):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Its threads spin while it runs, and not into the next candidate's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(serialized(folded, frames), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"frames": x.numpy()})[0])
