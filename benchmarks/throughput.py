"""Frames a second of the engine against eager torch (and torch.compile on a GPU), in one interleaved run.

    python benchmarks/throughput.py --sizes 640x360 1280x720 --repeats 5 --json benchmarks/results/cpu.json
    python benchmarks/throughput.py --device cuda --precision half --sizes 1280x720 --repeats 30

The first peer is the same network in eager torch: batch norm folded, channels_last, on a CPU the allocator
tuned, on a GPU cudnn.benchmark on and the same precision. --peers adds torch.compile ("max-autotune", on a GPU
with its CUDA graphs) and TensorRT where it is installed. Times are medians over interleaved rounds, on a GPU
between device events, over inputs that take turns so that none stays in cache; TFLOP/s counts
direct-convolution operations; "of floor" is the time that those operations take at the rate of torch's own
matrix product in that precision, measured in the same run, over the time taken.
"""

import argparse

import common

common.with_tuned_malloc()

import torch  # noqa: E402  (after the allocator is set)

import dblr_fast  # noqa: E402
from dblr_fast.backends import get  # noqa: E402
from dblr_fast.backends.torch_backend import TorchNetwork  # noqa: E402
from dblr_fast.engine import Engine, fold  # noqa: E402

PEERS = ("compile", "tensorrt")
EAGER = "eager torch, folded"


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["640x360"], help="WIDTHxHEIGHT, or BATCHxWIDTHxHEIGHT")
    parser.add_argument("--backends", nargs="+", default=None, help="default: every one that can run")
    parser.add_argument("--peers", nargs="*", default=[], choices=PEERS)
    parser.add_argument("--precision", default="exact", choices=["exact", "fast", "half", "bf16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="where to write the results")
    return parser.parse_args()


class Folded(torch.nn.Module):
    """The folded network in plain torch calls on a batch, in the precision's dtype: what peers compile."""

    def __init__(self, model, precision, device):
        super().__init__()
        self.network = TorchNetwork(fold(model), precision, device)

    def forward(self, frames):
        return self.network._run(frames.to(self.network.dtype)).float()


def tensorrt(module, frames):
    """The module compiled by Torch-TensorRT, or None with the reason printed."""
    try:
        import torch_tensorrt
    except ImportError as error:
        print(f"TensorRT is left out: {error}")
        return None
    return torch_tensorrt.compile(module, inputs=[frames], enabled_precisions={module.network.dtype})


def candidates(model, frames, names, peers, precision, device):
    """{name: function of frames}; the first is eager torch on the whole picture."""
    folded = Folded(model, precision, device)
    runs = {EAGER: folded}
    if "compile" in peers:
        runs["torch.compile, max-autotune"] = torch.compile(folded, mode="max-autotune")
    if "tensorrt" in peers:
        compiled = tensorrt(folded, frames)
        if compiled is not None:
            runs["TensorRT"] = compiled
    for name in names:
        if name != "torch":
            runs[f"engine, {name}"] = Engine(model, backend=name, precision=precision, device=device)
    return runs


def main():
    arguments = parse()
    device = torch.device(arguments.device)
    names = arguments.backends or [n for n in dblr_fast.backends() if get(n).unavailable(device) is None
                                   and get(n).precisions(device)[arguments.precision] is None]
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    model = dblr_fast.DBLRNet(init="identity").eval().to(device)
    rate = common.peak_rate(device, arguments.precision)
    print(f"{common.machine(device)}\nmatrix product, {arguments.precision}: {rate / 1e9:.0f} GFLOP/s")
    print(f"{'size':>14} {'':28} {'ms':>10} {'min..max':>19} {'frames/s':>9} {'TFLOP/s':>8} {'of floor':>8} {'ratio':>6}")
    rows = []
    for size in arguments.sizes:
        *batch, width, height = (int(v) for v in size.split("x"))
        batch = batch[0] if batch else 1
        inputs = [torch.rand(batch, model.frames, height, width, device=device) for _ in range(3)]
        work = batch * common.operations(model, height, width)
        with torch.no_grad(), common.float32_products(device, arguments.precision):
            runs = candidates(model, inputs[0], names, arguments.peers, arguments.precision, device)
            first = {name: run(inputs[0]).clone() for name, run in runs.items()}
            times = common.interleaved(runs, arguments.repeats, device, inputs)
        eager = common.spread(times[EAGER])[0]
        for name, seconds in times.items():
            median, low, high = common.spread(seconds)
            row = dict(size=size, candidate=name, precision=arguments.precision, median_s=median, min_s=low,
                       max_s=high, repeats=len(seconds), frames_per_s=batch / median,
                       tflops=work / median / 1e12, of_floor=work / rate / median, ratio=eager / median,
                       max_difference=(first[name] - first[EAGER]).abs().max().item())
            rows.append(row)
            print(f"{size:>14} {name:28} {median * 1e3:10.3f} {low * 1e3:9.3f}..{high * 1e3:8.3f} "
                  f"{batch / median:9.3f} {row['tflops']:8.3f} {row['of_floor']:8.2f} {row['ratio']:6.2f}")
    if arguments.json:
        common.write_json(arguments.json, device, rows, matrix_product_gflops=rate / 1e9)


if __name__ == "__main__":
    main()
