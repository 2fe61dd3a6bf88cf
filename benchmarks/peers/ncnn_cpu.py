"""ncnn on the CPU, with Winograd, from its own two files, picture by picture: it has no batches.

`exact` is float32 throughout; `bf16` keeps maps and weights in bf16 and leaves the products to ncnn: bf16 where the
processor has them, else float32.
"""

import struct
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from .graph import Conv, nodes, numpy

FLOAT32_TAG = struct.pack("<I", 0)


def files(graph):
    """(text of the .param file, bytes of the .bin file). ncnn wants a Split wherever a blob is read twice."""
    readers = Counter(name for node in graph for name in node.inputs)
    lines, weights, blobs, taken = [], [], 0, Counter()

    def layer(kind, inputs, outputs, parameters=""):
        nonlocal blobs
        blobs += len(outputs)
        lines.append(f"{kind} {kind}{len(lines)} {len(inputs)} {len(outputs)} "
                     f"{' '.join([*inputs, *outputs])} {parameters}".rstrip())

    def read(name):
        if readers[name] < 2:
            return name
        taken[name] += 1
        return f"{name}_{taken[name] - 1}"

    layer("Input", [], ["frames"])
    for node in graph:
        inputs = [read(name) for name in node.inputs]
        if isinstance(node, Conv):
            count, size = node.weight.shape[0], node.weight.numel()
            layer("Convolution", inputs, [node.out], f"0={count} 1=3 4=1 5=1 6={size} 9={int(node.relu)}")
            weights += [FLOAT32_TAG, numpy(node.weight).tobytes(), numpy(node.bias).tobytes()]
        else:
            layer("BinaryOp", inputs, [node.out], "0=0")
        if readers[node.out] > 1:
            layer("Split", [node.out], [f"{node.out}_{i}" for i in range(readers[node.out])])
    return "\n".join(["7767517", f"{len(lines)} {blobs}", *lines]) + "\n", b"".join(weights)


def build(folded, frames, precision):
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = torch.get_num_threads()
    for option in dir(net.opt):  # 16-bit and 8-bit options differ by version, and some are on unless told otherwise
        if not option.startswith("use_"):
            continue
        if "winograd" in option or option == "use_packing_layout":
            setattr(net.opt, option, True)
        elif "bf16" in option:
            setattr(net.opt, option, precision == "bf16")
        elif any(kind in option for kind in ("fp16", "int8", "vulkan")):
            setattr(net.opt, option, False)
    text, weights = files(nodes(folded, frames.shape[1]))
    with tempfile.TemporaryDirectory() as folder:
        param, binary = Path(folder, "net.param"), Path(folder, "net.bin")
        param.write_text(text)
        binary.write_bytes(weights)
        if net.load_param(str(param)) or net.load_model(str(binary)):
            raise RuntimeError("ncnn could not load the network")

    def one(picture):
        extractor = net.create_extractor()
        extractor.input("frames", ncnn.Mat(picture))
        code, out = extractor.extract("restored")
        if code:
            raise RuntimeError(f"ncnn failed with code {code}")
        return np.array(out).reshape(1, *picture.shape[1:])

    return lambda x: torch.from_numpy(np.stack([one(picture) for picture in x.numpy()]))
