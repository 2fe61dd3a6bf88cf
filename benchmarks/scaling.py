"""How many times faster the engine and a training step are on several threads than on one, in one interleaved run.

    python benchmarks/scaling.py --precision exact fast half bf16 --json benchmarks/results/scaling_cpu.json

A round runs each candidate once on one thread and once on --threads, a pause before each; "gain" is the median over
rounds of the ratio within a round, with its quartiles. What the processor itself allows is measured in the same
rounds: "products", as many threads as there are, each with matrices of its own that stay in its caches, against one;
"copy", the same of a copy of memory. The network has random weights. CPU only.
"""

import argparse
import statistics
import threading
import time

import environment

environment.prepare()

import candidates  # noqa: E402  (after the environment is set)
import common  # noqa: E402
import steps  # noqa: E402
import torch  # noqa: E402
from throughput import LEVELS, shape  # noqa: E402
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


def at_once(threads, prepare, count):
    """Seconds that as many Python threads take to make `count` calls each of their own prepare()."""
    ready = threading.Barrier(threads + 1)

    def work():
        run = prepare()
        ready.wait()
        for _ in range(count):
            run()

    torch.set_num_threads(1)  # within each of them
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    ready.wait()
    start = time.perf_counter()
    for worker in workers:
        worker.join()
    return time.perf_counter() - start


def product():
    a, b = torch.rand(2, 256, 256).sub_(0.5)
    return lambda out=a @ b: torch.mm(a, b, out=out)


def copy():
    a, b = torch.rand(2, 1 << 24)  # 64 MiB each
    return lambda: b.copy_(a)


# What each thread alone would do: {name: (prepare, calls of a measurement)}
ALONE = {"products": (product, 600), "copy": (copy, 8)}


def measured(size, arguments):
    """{(name, precision): function of a number of threads that gives seconds}"""
    batch, height, width = shape(size)
    model, frames = common.random_network(blocks=arguments.blocks), torch.rand(batch, FRAMES, height, width)
    found = {}
    for candidate in candidates.chosen(arguments.precision, ["cpu"], [], CPU):
        if candidate.kind == "engine":
            engine = candidate.build(model, frames)
            found["engine", candidate.precision] = lambda _, run=engine: common.timed(lambda: run(frames), CPU)
    for autocast in arguments.autocast if size.count("x") == 2 else []:
        try:
            step = steps.step(steps.OURS, autocast, arguments.blocks, CPU)
        except steps.Missing as reason:
            print(f"training step, {PRECISIONS[autocast]} is left out: {reason}")
            continue
        example = batch_of(size, CPU)
        found["training step", PRECISIONS[autocast]] = (
            lambda _, step=step, example=example: step(*example)["step"])
    for name, (prepare, count) in ALONE.items():
        # So much work for each thread is, on t threads, t times as much in all.
        found[name, "float32"] = lambda threads, f=prepare, n=count: at_once(threads, f, n) / threads
    return found


def measure(size, arguments):
    """Rows of one size, printed as they come."""
    found = measured(size, arguments)
    times = {key: {1: [], arguments.threads: []} for key in found}
    for round_ in range(arguments.repeats + 1):
        for key, run in found.items():
            for threads, seconds in times[key].items():
                torch.set_num_threads(threads)
                time.sleep(common.PAUSE)
                taken = run(threads)
                if round_:  # the first is warm-up
                    seconds.append(taken)
    rows = []
    for (name, precision), by_threads in times.items():
        one, several = by_threads.values()
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
