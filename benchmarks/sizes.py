"""What a pixel of a larger picture costs the engine, over one of a smaller, in one interleaved run.

    python benchmarks/sizes.py 640x360 1280x720 --precision exact fast half bf16 --json benchmarks/results/pixels_cpu.json

A round runs each size once, a pause before each; "over" is the median over rounds of the time per pixel within a
round, over that of the first size, with its quartiles. The network has random weights. CPU only.
"""

import argparse
import statistics
from functools import partial

import environment

environment.prepare()

import common  # noqa: E402  (after the environment is set)
import torch  # noqa: E402
from common import shape  # noqa: E402

from dblr_fast import Engine  # noqa: E402
from dblr_fast.backends import get  # noqa: E402
from dblr_fast.levels import LEVELS  # noqa: E402

CPU = torch.device("cpu")


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="+", help="WIDTHxHEIGHT, or BATCHxWIDTHxHEIGHT")
    parser.add_argument("--precision", nargs="+", default=["exact"], choices=LEVELS)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--blocks", type=int, default=14, help="residual blocks of the network")
    parser.add_argument("--json", help="where to write the results")
    arguments = parser.parse_args()
    if arguments.repeats < 2:
        parser.error(f"--repeats {arguments.repeats} is too few: give 2 or more")
    return arguments


def seconds_a_pixel(engine, pictures, repeats):
    """{size: [seconds]} of each round."""
    times = common.interleaved({size: partial(engine, frames) for size, frames in pictures.items()}, repeats, CPU)
    return {size: [t / pictures[size][:, 0].numel() for t in seconds] for size, seconds in times.items()}


def main():
    arguments = parse()
    model, rows = common.random_network(blocks=arguments.blocks), []
    pictures = {}
    for size in arguments.sizes:
        batch, height, width = shape(size)
        pictures[size] = torch.rand(batch, model.frames, height, width)
    print(common.machine(CPU))
    print(f"{'':8} {'size':>12} {'ns a pixel':>10} {'over':>6} {'quartiles':>14}")
    for precision in arguments.precision:
        if reason := get("cpu").precisions()[precision]:
            print(f"{precision} is left out: {reason}")
            continue
        times = seconds_a_pixel(Engine(model, backend="cpu", precision=precision), pictures, arguments.repeats)
        first = times[arguments.sizes[0]]
        for size, seconds in times.items():
            low, over, high = statistics.quantiles([a / b for a, b in zip(seconds, first)], n=4, method="inclusive")
            rows.append(dict(size=size, precision=precision, median_ns=statistics.median(seconds) * 1e9, over=over,
                             over_quartiles=[low, high], repeats=len(seconds)))
            print(f"{precision:8} {size:>12} {rows[-1]['median_ns']:10.1f} {over:6.3f} {low:6.3f}..{high:6.3f}",
                  flush=True)
        if arguments.json:
            common.write_json(arguments.json, CPU, rows, blocks=arguments.blocks)


if __name__ == "__main__":
    main()
