"""Device time of each kernel of one frame on a GPU, against the counted floor of its layer.

    python benchmarks/layers.py --size 1280x720 --precision half --json benchmarks/results/layers.json

Runs the engine with CUDA graphs off under torch's profiler, so that each kernel is timed where it runs, with
the caches as its predecessor left them, over --calls frames in a row, as those of a video come: then the clock is
the one that the power limit allows. Weights and pictures are random, for zeros take less power. The floor of a layer
is the larger of its operations at the rate of torch's own matrix product and its bytes (maps read and written once)
at the rate of a device-to-device copy, both measured in the same run.
"""

import argparse
import os
import statistics

import common
import torch
from torch.profiler import ProfilerActivity, profile

from dblr_fast.engine import Engine


def copy_rate(device):
    """Bytes a second, read and written, of a large copy on the device."""
    a = torch.rand(2**28, device=device)
    b = torch.empty_like(a)
    best = min(common.timed(lambda: b.copy_(a), device) for _ in range(20))
    return 2 * a.numel() * 4 / best


def layers(model, height, width, size):
    """[(layer, operations, bytes)] of one frame; maps in elements of `size` bytes."""
    pixels, w = height * width, model.width

    def layer(name, inner, out, maps):
        return name, 2 * 9 * inner * out * pixels, maps * size * pixels

    middle = 16 * (model.frames - 2)
    rows = [("L1", 2 * 27 * middle * pixels, pixels * (model.frames * 4 + middle * size)),
            layer("L2", middle, w, middle + w)]
    for i in range(len(model.body())):
        rows.append(layer(f"L{i + 3}", w, w, (2 + i % 2) * w))
    rows.append(layer("L33", w, 4 * w, 5 * w))
    rows.append(layer("L34+L35", 4 * w, 4 * w, 4 * w))
    return rows


def frame_by_frame(launches, frames):
    """[(kernel's name, median seconds)] in the order of launch.

    launches: [(start, name, seconds)] of so many frames in a row, each of which launches the same kernels.
    """
    launches = sorted(launches)
    count, rest = divmod(len(launches), frames)
    names = [name for _, name, _ in launches[:count]]
    if rest or [name for _, name, _ in launches] != names * frames:
        raise RuntimeError(f"the {frames} frames launched different kernels")
    return [(name, statistics.median(seconds for _, _, seconds in launches[i::count])) for i, name in enumerate(names)]


def kernel_times(engine, inputs, calls):
    """The same of the engine's frames, which take inputs in turn. As many come before, unmeasured."""
    def run():
        for i in range(calls):
            engine(inputs[i % len(inputs)])
        torch.cuda.synchronize()

    run()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        run()
    return frame_by_frame([(e.time_range.start, e.name, e.time_range.elapsed_us() / 1e6) for e in trace.events()
                           if e.device_type == torch.autograd.DeviceType.CUDA], calls)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="1280x720", help="WIDTHxHEIGHT")
    parser.add_argument("--precision", default="half", choices=["exact", "fast", "half", "bf16"])
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--calls", type=int, default=40, help="frames in a row")
    parser.add_argument("--json", help="where to write the results")
    arguments = parser.parse_args()
    os.environ["DBLR_FAST_GRAPHS"] = "off"
    device = torch.device("cuda")
    width, height = (int(v) for v in arguments.size.split("x"))
    model = common.random_network().to(device)
    engine = Engine(model, backend=arguments.backend, precision=arguments.precision, device=device, tile="off")
    inputs = [torch.rand(1, model.frames, height, width, device=device) for _ in range(3)]
    rate, bandwidth = common.peak_rate(device, arguments.precision), copy_rate(device)
    print(f"{common.machine(device)}\n{rate / 1e12:.0f} TFLOP/s, {bandwidth / 1e12:.2f} TB/s")
    size = common.DTYPES[arguments.precision].itemsize
    floors = [(name, max(work / rate, moved / bandwidth))
              for name, work, moved in layers(model, height, width, size)]
    convolutions = iter(floors)
    rows = []
    for name, seconds in kernel_times(engine, inputs, arguments.calls):
        convolves = any(part in name for part in ("stem", "conv3x3", "planes_convolution"))
        layer, floor = next(convolutions, ("", 0.0)) if convolves else ("", 0.0)
        rows.append(dict(layer=layer, kernel=name[:80], seconds=seconds, floor_s=floor,
                         of_floor=floor / seconds if floor else None))
        print(f"{layer:8} {seconds * 1e6:9.1f} us  floor {floor * 1e6:7.1f}  {name[:70]}")
    total, floor = sum(r["seconds"] for r in rows), sum(f for _, f in floors)
    print(f"sum of kernels of a frame, of {arguments.calls} in a row, {total * 1e3:.3f} ms, floor {floor * 1e3:.3f} ms "
          f"({floor / total:.2f} of it)")
    if arguments.json:
        common.write_json(arguments.json, device, rows, size=arguments.size, precision=arguments.precision,
                          calls=arguments.calls, sum_s=total, floor_s=floor, matrix_product_tflops=rate / 1e12,
                          copy_tb_per_s=bandwidth / 1e12)


if __name__ == "__main__":
    main()
