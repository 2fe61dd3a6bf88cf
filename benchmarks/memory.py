"""Memory and time of the engine as its maps may take less and less, in one interleaved run.

    python benchmarks/memory.py 640x360 --precision exact fast half bf16 --json benchmarks/results/memory_cpu.json
    python benchmarks/memory.py 3840x2160 --repeats 0

"workspace MiB" is what maps may take: as many as the engine takes by itself, then the least that needs no tiles, with
as few rows of each map at a time as it can do with. "net MiB" is the peak memory of a first run over what was held
before it, weights included; "peak MiB" that of the whole process, each the median of some processes of their own;
"ratio" the median over rounds of a run's time over the first's in the same round. The network has random weights. Of
C's allocator nothing is set, as other benchmarks do. CPU only.
"""

import argparse
import statistics

import common
import net_memory
import torch
from common import shape

from dblr_fast import Engine
from dblr_fast.backends import get
from dblr_fast.levels import LEVELS

CPU = torch.device("cpu")


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", help="WIDTHxHEIGHT, or BATCHxWIDTHxHEIGHT")
    parser.add_argument("--precision", nargs="+", default=["exact"], choices=LEVELS)
    parser.add_argument("--repeats", type=int, default=9, help="0: memory alone")
    parser.add_argument("--blocks", type=int, default=14, help="residual blocks of the network")
    parser.add_argument("--processes", type=int, default=3, help="of which memory is the median (default: %(default)s)")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)  # precision and workspace, in this process
    parser.add_argument("--json", help="where to write the results")
    return parser.parse_args()


def engine(model, precision, workspace=None):
    return Engine(model, backend="cpu", precision=precision, workspace=workspace)


def workspaces(model, precision, frames):
    """What maps take of the memory that there is, and the least that they can do with."""
    whole = engine(model, precision)
    whole(frames[..., :8, :8])  # its weights are packed
    height, width = frames.shape[2:]
    return [whole._network.workspace_bytes(height, width, most) for most in (whole.workspace, 0)]


def main():
    arguments = parse()
    model = common.random_network(blocks=arguments.blocks)
    frames = torch.rand(shape(arguments.size)[0], model.frames, *shape(arguments.size)[1:])
    if arguments.memory_of:
        precision, workspace = arguments.memory_of
        net_memory.report(lambda run=engine(model, precision, int(workspace)): run(frames))
        return
    print(common.machine(CPU))
    print(f"{'':10} {'workspace MiB':>13} {'net MiB':>8} {'peak MiB':>8} {'s':>8} {'ratio':>6}")
    rows = []
    for precision in arguments.precision:
        if reason := get("cpu").precisions()[precision]:
            print(f"{precision} is left out: {reason}")
            continue
        sizes = workspaces(model, precision, frames)
        memory = [net_memory.median_of_processes(arguments.processes, __file__, arguments.size, "--memory-of", precision,
                                                 size, "--blocks", arguments.blocks) for size in sizes]
        times = {}
        if arguments.repeats:
            runs = dict(zip(("whole", "least"), (engine(model, precision, size) for size in sizes)))
            times = common.interleaved(runs, arguments.repeats, CPU, [frames])
        for size, net, seconds in zip(sizes, memory, times.values() or (None, None)):
            row = dict(size=arguments.size, precision=precision, workspace_mib=size / 2**20, **net)
            if seconds:
                row |= dict(median_s=statistics.median(seconds), repeats=len(seconds),
                            ratio=common.paired_ratio(seconds, times["whole"]))
            rows.append(row)
            timed = f"{row['median_s']:8.3f} {row['ratio']:6.3f}" if seconds else ""
            held = "".join(f" {row[key]:8.0f}" for key in ("net_mib", "peak_mib") if key in row)
            print(f"{precision:10} {row['workspace_mib']:13.1f}{held} {timed}", flush=True)
        if arguments.json:
            common.write_json(arguments.json, CPU, rows, blocks=arguments.blocks)


if __name__ == "__main__":
    main()
