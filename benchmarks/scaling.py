"""How many times faster the engine and a training step are on several threads than on one, in one interleaved run.

    python benchmarks/scaling.py --precision exact fast half bf16 --json benchmarks/results/scaling_cpu.json

A round runs each candidate once on one thread and once on --threads, a pause before each; "gain" is the median over
rounds of the ratio within a round, with its quartiles. What the processor itself allows is measured in the same
rounds: "products", as many threads as there are, each with matrices of its own that stay in its caches, against one;
"copy", the same of a copy of memory. The network has random weights. CPU only.
"""

import argparse
import statistics
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import environment

environment.prepare()

import candidates  # noqa: E402  (after the environment is set)
import common  # noqa: E402
import steps  # noqa: E402
import torch  # noqa: E402
from common import shape  # noqa: E402
from throughput import LEVELS  # noqa: E402
from train_step import FRAMES, PRECISIONS, batch_of  # noqa: E402

CPU = torch.device("cpu")


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["640x360", "4x128x128"],
                        help="WIDTHxHEIGHT, or BATCHxWIDTHxHEIGHT")
    parser.add_argument("--precision", nargs="*", default=["exact"], choices=LEVELS, help="of the engine")
    parser.add_argument("--autocast", nargs="*", default=["none"], choices=["none", "bf16"],
                        help="of training steps, of the sizes that name a batch")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: torch's (%(default)s)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--blocks", type=int, default=14, help="residual blocks of the network")
    parser.add_argument("--json", help="where to write the results")
    arguments = parser.parse_args()
    for name in ("threads", "repeats"):
        if getattr(arguments, name) < 2:
            parser.error(f"--{name} {getattr(arguments, name)} is too few: give 2 or more")
    return arguments


def product():
    a, b = torch.rand(2, 256, 256).sub_(0.5)
    return lambda out=a @ b: torch.mm(a, b, out=out)


def copy():
    a, b = torch.rand(2, 1 << 24)  # 64 MiB each
    return lambda: b.copy_(a)


# What each thread alone would do: {name: (prepare, calls of a measurement)}
ALONE = {"products": (product, 600), "copy": (copy, 8)}


def measured(size, arguments):
    """{(name, precision): function that takes torch's threads}"""
    batch, height, width = shape(size)
    model, frames = common.random_network(blocks=arguments.blocks), torch.rand(batch, FRAMES, height, width)
    found = {}
    for candidate in candidates.chosen(arguments.precision, ["cpu"], [], CPU):
        if candidate.kind == "engine":
            found["engine", candidate.precision] = partial(candidate.build(model, frames), frames)
    for autocast in arguments.autocast if size.count("x") == 2 else []:
        try:
            step = steps.step(steps.OURS, autocast, arguments.blocks, CPU)
        except steps.Missing as reason:
            print(f"training step, {PRECISIONS[autocast]} is left out: {reason}")
            continue
        found["training step", PRECISIONS[autocast]] = partial(step, *batch_of(size, CPU))
    return found


def on(threads, run):
    """run() with so many of torch's threads."""
    def call():
        torch.set_num_threads(threads)
        run()
    return call


def at_once(threads, prepare, count):
    """`count` calls of prepare()'s by each of so many Python threads, each its own."""
    prepared = [prepare() for _ in range(threads)]

    def call():
        # OpenMP's number of threads is each thread's own: without this every one of them would take all.
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(lambda run: [run() for _ in range(count)], prepared))
    return call


def measure(size, arguments):
    """Rows of one size, printed as they come."""
    runs, counts = {}, (1, arguments.threads)
    for key, run in measured(size, arguments).items():
        runs |= {(*key, threads): on(threads, run) for threads in counts}
    for name, alone in ALONE.items():
        runs |= {(name, "float32", threads): at_once(threads, *alone) for threads in counts}
    times = common.interleaved(runs, arguments.repeats, CPU)
    rows = []
    for name, precision in dict.fromkeys(key[:2] for key in times):
        one, several = (times[name, precision, threads] for threads in counts)
        if name in ALONE:  # so much work for each thread is in all so many times as much
            several = [seconds / arguments.threads for seconds in several]
        low, gain, high = statistics.quantiles([a / b for a, b in zip(one, several)])
        rows.append(dict(size=size, candidate=name, precision=precision, threads=arguments.threads,
                         one_s=statistics.median(one), several_s=statistics.median(several), gain=gain,
                         gain_quartiles=[low, high], repeats=len(one)))
        print(f"{size:>12} {name:14} {precision:8} {rows[-1]['one_s'] * 1e3:10.1f} ms on one thread, "
              f"{rows[-1]['several_s'] * 1e3:10.1f} on {arguments.threads}: x{gain:.2f} ({low:.2f}..{high:.2f})",
              flush=True)
    return rows


def main():
    arguments = parse()
    print(common.machine(CPU))
    rows = []
    for size in arguments.sizes:
        rows += measure(size, arguments)
        if arguments.json:  # size by size: an interrupted run keeps what it has
            torch.set_num_threads(arguments.threads)
            common.write_json(arguments.json, CPU, rows, blocks=arguments.blocks)


if __name__ == "__main__":
    main()
