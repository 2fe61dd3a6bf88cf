"""A training step (forward, backward, Adam) of our ops against eager torch, in one interleaved run.

    python benchmarks/train_step.py --peers --autocast none bf16 --json benchmarks/results/train_cpu.json
    python benchmarks/train_step.py --device cuda --autocast half --repeats 30

The peer is `python_ref.DBLRNet` in eager torch, channels_last, the allocator tuned; --peers adds the same under
torch.compile. All start from the same random weights and take the same batches. On a CPU forward and backward are
timed apart; on a GPU the whole step is, between device events, also as one CUDA graph for each; there the training
loop's own step, which looks at values before weights change, runs as well, launched and as cuda_graphs replays it.
Medians over interleaved rounds; ratios are over eager torch in the same precision.

GFLOP/s counts direct convolutions, forward once and backward twice; "of floor" is the time that those take at the
rate of torch's own matrix product, measured in the same run, over the time taken. On a CPU "net MiB" is the peak
memory of a first step (of torch.compile, the second: the first compiles) over what was held before it, the median of
five processes. "error" is relative (RMS), of the pictures of a first batch, against python_ref in float64; "of gradients"
the same of all gradients, which a ReLU that rounding moves over zero changes by far more than rounding.
"""

import argparse

import environment

environment.prepare()

import common  # noqa: E402  (after the environment is set)
import net_memory  # noqa: E402
import steps  # noqa: E402
import torch  # noqa: E402
from steps import COMPILED, EAGER, LOOP, OURS  # noqa: E402

PRECISIONS = {"none": "float32", "half": "half", "bf16": "bf16"}
LEVELS = {"none": "exact", "half": "half", "bf16": "bf16"}
FRAMES = 5


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["4x128x128"], help="BATCHxWIDTHxHEIGHT")
    parser.add_argument("--peers", action="store_true", help="torch.compile too")
    parser.add_argument("--autocast", nargs="+", default=["none"], choices=list(PRECISIONS),
                        help="none (float32) or torch.autocast in this type; several share a run")
    parser.add_argument("--avx2", action="store_true", help="limit all to AVX2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=14, help="residual blocks of the network")
    parser.add_argument("--no-memory", action="store_true", help="leave out the process of its own for each")
    # A third of eager torch's processes take two thirds of what the others do.
    parser.add_argument("--processes", type=int, default=5, help="of which memory is the median (default: %(default)s)")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)  # one candidate, in this process
    parser.add_argument("--json", help="where to write the results")
    return parser.parse_args()


def batch_of(size, device):
    """A random batch: frames (N, 5, H, W) and the target (N, 1, H, W)."""
    count, width, height = (int(v) for v in size.split("x"))
    frames = torch.rand(count, FRAMES, height, width, device=device)
    return frames, frames[:, 2:3].clone()


def built(arguments, batch, device):
    """{(name, autocast): step} of all that can run; a line for each that cannot."""
    found = {}
    for precision in arguments.autocast:
        for name in [EAGER, COMPILED, OURS] if arguments.peers else [EAGER, OURS]:
            try:
                if device.type != "cuda":
                    found[name, precision] = steps.step(name, precision, arguments.blocks, device)
                    continue
                for graph in (False, True):
                    found[name + ", CUDA graph" * graph, precision] = steps.device_step(
                        name, precision, arguments.blocks, device, graph, batch)
            except steps.Missing as reason:
                print(f"{name}, {PRECISIONS[precision]} is left out: {reason}")
        if device.type == "cuda":
            for graph in (False, True):
                found[LOOP + ", CUDA graphs" * graph, precision] = steps.LoopStep(
                    precision, arguments.blocks, device, graph, batch)
    return found


def memory_of(name, precision, arguments, device):
    """Prints the memory of one candidate's step as JSON; what net_memory.in_own_process starts."""
    step, batch = steps.step(name, precision, arguments.blocks, device), batch_of(arguments.sizes[0], device)
    if name == COMPILED:
        step(*batch)
    net_memory.report(lambda: step(*batch))


def memories(found, size, arguments, device):
    """{candidate: its memory}; the steps held here are small before they have run."""
    if device.type != "cpu" or arguments.no_memory:
        return {}
    net_memory.give_back()  # of the size before
    options = ["--sizes", size, "--blocks", arguments.blocks, *(["--avx2"] if arguments.avx2 else [])]
    return {(name, precision): net_memory.median_of_processes(
        arguments.processes, __file__, "--memory-of", name, precision, *options)
            for name, precision in found}


def timed(found, size, repeats, device):
    """{candidate: [seconds of each part]}, one step each a round; the first round is warm-up."""
    times = {candidate: [] for candidate in found}
    for round_ in range(repeats + 1):
        batch = batch_of(size, device)
        for candidate, step in found.items():
            seconds = step(*batch)
            if round_:
                times[candidate].append(seconds)
    return times


def medians(rounds):
    return {part: common.spread([r[part] for r in rounds])[0] for part in rounds[0]}


def measure(size, rates, arguments, device):
    """Rows of one size, printed as they come."""
    torch.manual_seed(1)
    batch = batch_of(size, device)
    found = built(arguments, batch, device)
    if not found:
        return []
    memory = memories(found, size, arguments, device)
    wanted = steps.reference(arguments.blocks, *batch, device)
    errors = {candidate: [common.relative(*pair) for pair in zip(step.results(*batch), wanted)]
              for candidate, step in found.items() if not getattr(step, "trained", False)}
    common.update_rates(rates, [LEVELS[precision] for _, precision in found], device)
    work = 3 * batch[0].shape[0] * common.operations(next(iter(found.values())).model, *batch[0].shape[2:])
    times = timed(found, size, arguments.repeats, device)
    rows = []
    for (name, precision), rounds in times.items():
        eager = times[EAGER, precision]
        mine = medians(rounds)
        _, low, high = common.spread([r["step"] for r in rounds])
        ratios = {part: common.paired_ratio([r[part] for r in eager], [r[part] for r in rounds]) for part in mine}
        floor = work / rates[LEVELS[precision]]
        row = dict(size=size, candidate=name, precision=PRECISIONS[precision], repeats=len(rounds), min_s=low,
                   max_s=high, tflops=work / mine["step"] / 1e12, of_floor=floor / mine["step"],
                   **memory.get((name, precision), {}))
        if (name, precision) in errors:
            row["error"], row["gradient_error"] = errors[name, precision]
        row |= {f"{part}_s": v for part, v in mine.items()} | {f"ratio_{part}": v for part, v in ratios.items()}
        net, eager_net = row.get("net_mib"), memory.get((EAGER, precision), {}).get("net_mib")
        if net and eager_net:
            row["ratio_net"] = eager_net / net
        rows.append(row)
        parts = "   ".join(f"{part} {v * 1e3:.2f} ms (x{ratios[part]:.2f})" for part, v in mine.items())
        more = f", net {net:.0f} MiB (x{row['ratio_net']:.2f} less)" if "ratio_net" in row else ""
        if "error" in row:
            more += f", error {row['error']:.1e} ({row['gradient_error']:.1e} of gradients)"
        print(f"{size:>12} {name:32} {row['precision']:8} {parts}   {low * 1e3:.2f}..{high * 1e3:.2f} ms, "
              f"{row['tflops'] * 1e3:.1f} GFLOP/s, {row['of_floor']:.2f} of floor{more}", flush=True)
    return rows


def main():
    arguments = parse()
    device = torch.device(arguments.device)
    if arguments.memory_of:
        memory_of(*arguments.memory_of, arguments, device)
        return
    print(common.machine(device))
    rates, rows = {}, []
    for size in arguments.sizes:
        rows += measure(size, rates, arguments, device)
        if arguments.json:  # size by size: an interrupted run keeps what it has
            common.write_json(arguments.json, device, rows, blocks=arguments.blocks,
                              matrix_product_gflops={p: rate / 1e9 for p, rate in rates.items()})


if __name__ == "__main__":
    main()
