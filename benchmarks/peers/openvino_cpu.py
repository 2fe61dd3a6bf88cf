"""OpenVINO on the CPU in float32 (`exact`) or bf16, over as many threads as torch has.

`build` takes the whole batch in one stream over all threads, the fastest for a picture; `build_streams` takes the
pictures of a batch side by side in as many streams as there are threads, the fastest for a batch.
"""

import environment
import torch

from . import Missing
from .onnx_file import serialized

NAMES = {"exact": ("f32", "float32"), "bf16": ("bf16", "bfloat16")}


def compiled(folded, frames, precision, hint, streams):
    import openvino

    core, threads = openvino.Core(), torch.get_num_threads()
    made = core.compile_model(core.read_model(serialized(folded, frames)), "CPU", {
        "INFERENCE_PRECISION_HINT": NAMES[precision][0], "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": streams,
        "PERFORMANCE_HINT": hint, "ENABLE_CPU_PINNING": False, "ENABLE_HYPER_THREADING": True})
    got = made.get_property("INFERENCE_PRECISION_HINT").to_string()
    if got not in NAMES[precision]:
        raise Missing(f"OpenVINO runs {precision} as {got} on this processor")
    taken = made.get_property("INFERENCE_NUM_THREADS")
    if taken != threads:
        raise Missing(f"OpenVINO takes {taken} of torch's {threads} threads")
    if environment.limited_to_avx2():
        kinds = {str(getattr(kind, "value", kind)) for node in made.get_runtime_model().get_ops()
                 if (kind := node.get_rt_info()["primitiveType"]) is not None}
        if wide := sorted(kind for kind in kinds if "avx512" in kind):
            raise Missing(f"OpenVINO takes {', '.join(wide)} although it is limited to AVX2")
    return made


def build(folded, frames, precision):
    request = compiled(folded, frames, precision, "LATENCY", 1).create_infer_request()

    def run(x):
        request.infer([x.numpy()], share_inputs=True)
        return torch.from_numpy(request.get_output_tensor().data.copy())

    return run


def build_streams(folded, frames, precision):
    streams = min(torch.get_num_threads(), frames.shape[0])
    if streams < 2:
        raise Missing("streams need several pictures in a batch and several threads")
    import openvino

    queue = openvino.AsyncInferQueue(compiled(folded, frames[:1], precision, "THROUGHPUT", streams), streams)

    def keep(request, place):
        place[...] = request.get_output_tensor().data[0]

    queue.set_callback(keep)

    def run(x):
        out = torch.empty(x.shape[0], 1, *x.shape[2:])
        for picture, place in zip(x.split(1), out.numpy()):
            queue.start_async([picture.numpy()], place, share_inputs=True)
        queue.wait_all()
        return out

    return run
