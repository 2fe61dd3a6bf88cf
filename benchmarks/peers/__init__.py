"""What users run this network with today: one file a peer, each optional (`pip install '.[bench]'`).

A peer is a function (folded network, example frames, precision) -> function of frames; it raises Missing with
a reason where its library, or what the library needs, is not there. All get the same folded weights and as many
threads as torch has. The stem reaches them as two 2-D convolutions, which every library runs faster than 3-D ones.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import NamedTuple

import environment
import processor

ALL = ("exact", "fast", "half", "bf16")


class Missing(Exception):
    """A peer cannot run here, and why."""


class Peer(NamedTuple):
    """place: file and function; cpu, gpu: precisions it has a row in; avx2: whether something limits it to AVX2."""

    label: str
    place: tuple[str, str]
    cpu: tuple[str, ...]
    gpu: tuple[str, ...]
    package: str
    avx2: bool = False
    compiles_on_first_call: bool = False


PEERS = {
    "compile": Peer("torch.compile", ("torch_compile", "build"), ("exact", "bf16"), ALL, "torch", True, True),
    "onnxruntime": Peer("ONNX Runtime", ("onnx_runtime", "build"), ("exact",), (), "onnxruntime"),
    "openvino": Peer("OpenVINO", ("openvino_cpu", "build"), ("exact", "bf16"), (), "openvino", True),
    "openvino-streams": Peer("OpenVINO, streams", ("openvino_cpu", "build_streams"), ("exact", "bf16"), (), "openvino",
                             True),
    "ncnn": Peer("ncnn", ("ncnn_cpu", "build"), ("exact", "bf16"), (), "ncnn"),
    "tensorrt": Peer("TensorRT", ("tensorrt", "build"), (), ALL, "torch_tensorrt"),
}


def precisions(name, device):
    """The precisions in which a peer has a row of its own on this device."""
    return PEERS[name].cpu if device.type == "cpu" else PEERS[name].gpu


def escapes_avx2(name):
    """Whether --avx2 would leave this peer its AVX-512."""
    return environment.limited_to_avx2() and processor.has_avx512() and not PEERS[name].avx2


def build(name, folded, frames, precision):
    """The peer's function of frames, made for the shape of `frames`; raises Missing."""
    file, function = PEERS[name].place
    try:
        return getattr(import_module(f"peers.{file}"), function)(folded, frames, precision)
    except ImportError as error:
        raise Missing(f"{error} (pip install '.[bench]')") from error


def versions(names):
    """{package: version} of those installed."""
    found = {}
    for package in dict.fromkeys(PEERS[name].package for name in names):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
