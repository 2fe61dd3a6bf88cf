"""Frames a second of the engine against eager torch, in one interleaved run.

    python benchmarks/throughput.py --sizes 640x360 1280x720 --repeats 5 --json benchmarks/results/cpu.json

The peer is the same network in eager torch: batch norm folded, channels_last, the allocator tuned. Times
are medians over interleaved rounds; TFLOP/s counts direct-convolution operations; "of floor" is the time
that those operations take at the rate of torch's own float32 matrix product, measured in the same run,
over the time taken.
"""

import argparse

import common

common.with_tuned_malloc()

import torch  # noqa: E402  (after the allocator is set)

import dblr_fast  # noqa: E402
from dblr_fast.engine import Engine  # noqa: E402


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["640x360"], help="WIDTHxHEIGHT, or BATCHxWIDTHxHEIGHT")
    parser.add_argument("--backends", nargs="+", default=None, help="default: every one that can run")
    parser.add_argument("--precision", default="exact", choices=["exact", "fast", "half", "bf16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="where to write the results")
    return parser.parse_args()


def candidates(model, frames, names, precision, device):
    """{name: (callable, its picture)}; the peer is eager torch, folded, on the whole picture."""
    engines = {name: Engine(model, backend=name, precision=precision, device=device) for name in names}
    eager = Engine(model, backend="torch", precision=precision, device=device, tile="off")
    runs = {"eager torch, folded": lambda: eager(frames)}
    for name, engine in engines.items():
        if name != "torch":
            runs[f"engine, {name}"] = lambda engine=engine: engine(frames)
    return runs


def main():
    arguments = parse()
    device = torch.device(arguments.device)
    names = arguments.backends or [n for n in dblr_fast.backends() if dblr_fast.backends.get(n).unavailable(device) is None]
    torch.manual_seed(0)
    model = dblr_fast.DBLRNet(init="identity").eval().to(device)
    rate = common.peak_rate(device)
    print(f"{common.machine(device)}\nfloat32 matrix product: {rate / 1e9:.0f} GFLOP/s")
    print(f"{'size':>14} {'':24} {'s':>9} {'min..max':>17} {'frames/s':>9} {'TFLOP/s':>8} {'of floor':>8} {'ratio':>6}")
    rows = []
    for size in arguments.sizes:
        *batch, width, height = (int(v) for v in size.split("x"))
        batch = batch[0] if batch else 1
        frames = torch.rand(batch, model.frames, height, width, device=device)
        work = batch * common.operations(model, height, width)
        runs = candidates(model, frames, names, arguments.precision, device)
        exact = {name: run() for name, run in runs.items()}
        peer = exact["eager torch, folded"]
        times = common.interleaved(runs, arguments.repeats, device)
        eager = common.spread(times["eager torch, folded"])[0]
        for name, seconds in times.items():
            median, low, high = common.spread(seconds)
            row = dict(size=size, candidate=name, precision=arguments.precision, median_s=median, min_s=low,
                       max_s=high, repeats=len(seconds), frames_per_s=batch / median,
                       tflops=work / median / 1e12, of_floor=work / rate / median, ratio=eager / median,
                       max_difference=(exact[name] - peer).abs().max().item())
            rows.append(row)
            print(f"{size:>14} {name:24} {median:9.4f} {low:8.4f}..{high:7.4f} {batch / median:9.3f} "
                  f"{row['tflops']:8.3f} {row['of_floor']:8.2f} {row['ratio']:6.2f}")
    if arguments.json:
        common.write_json(arguments.json, device, rows, matrix_product_gflops=rate / 1e9)


if __name__ == "__main__":
    main()
