"""Frames a second of the engine against eager torch and other peers, in one interleaved run.

    python benchmarks/throughput.py --peers --precision exact bf16 --json benchmarks/results/cpu.json
    python benchmarks/throughput.py --device cuda --precision half --sizes 1280x720 --repeats 30

The first peer is the same network in eager torch: batch norm folded, channels_last, on a CPU the allocator
tuned, on a GPU cudnn.benchmark on and the same precision. --peers adds the others of benchmarks/peers (all that
this device knows, or those named), each in its fastest setting and with torch's number of threads; a missing one
is a printed line. --avx2 limits all to AVX2. The network has random weights.

Times are medians over interleaved rounds, on a CPU after a short pause each, on a GPU between device events around
--calls calls, one after another as for the frames of a video (so that the host works ahead), over inputs that take
turns so that none stays in cache; GFLOP/s counts direct-convolution operations (Winograd does
fewer); "of floor" is the time that those take at the rate of torch's own matrix product in that precision, measured
in the same run, over the time taken. "ratio" is over the first row. On a CPU "net MiB" is the peak memory of a first
run over what was held before it, in a process of its own. "error" is relative (RMS) against the network in float64,
over a crop in the middle of the first picture; "differs" the same against the first row, over all pictures. A line
for each of the engine's rows then says how many times faster it was than each peer: medians over rounds of the ratio
within a round.
"""

import argparse

import environment

environment.prepare()

import candidates  # noqa: E402  (after the environment is set)
import common  # noqa: E402
import net_memory  # noqa: E402
import peers  # noqa: E402
import torch  # noqa: E402
from common import shape  # noqa: E402
from peers.reference import Crop  # noqa: E402

import dblr_fast  # noqa: E402
from dblr_fast.backends import get  # noqa: E402
from dblr_fast.engine import fold  # noqa: E402

LEVELS = ("exact", "fast", "half", "bf16")


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["640x360"], help="WIDTHxHEIGHT, or BATCHxWIDTHxHEIGHT")
    parser.add_argument("--backends", nargs="+", default=None, help="default: every one that can run")
    parser.add_argument("--peers", nargs="*", default=None, choices=list(peers.PEERS),
                        help="no name: all for this device")
    parser.add_argument("--precision", nargs="+", default=["exact"], choices=LEVELS,
                        help="of the engine; peers on a CPU have exact (for fast too) and bf16 (for half too)")
    parser.add_argument("--avx2", action="store_true", help="limit all to AVX2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--calls", type=int, help="that make a measurement; default: 1, on a GPU 8")
    parser.add_argument("--blocks", type=int, default=14, help="residual blocks of the network")
    parser.add_argument("--error-crop", default="96x64", help="WIDTHxHEIGHT of the crop compared with float64")
    parser.add_argument("--no-memory", action="store_true", help="leave out the process of its own for each")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # one candidate, in this process
    parser.add_argument("--json", help="where to write the results")
    return parser.parse_args()


@torch.no_grad()
def memory_of(key, model, size, device):
    """Prints the memory of one candidate's run as JSON; what net_memory.in_own_process starts."""
    candidate = candidates.parse(key)
    batch, height, width = shape(size)
    frames = torch.rand(batch, model.frames, height, width, device=device)
    try:
        run = candidate.build(model, frames)
        if candidate.compiles_on_first_call():
            run(frames)
    except peers.Missing:
        print("\n{}")  # the run that asks says why
        return
    net_memory.report(lambda: run(frames))


def memories(found, size, arguments, device):
    """{candidate: its memory}; measured before anything large is held here."""
    if device.type != "cpu" or arguments.no_memory:
        return {}
    net_memory.give_back()  # of the size before
    options = ["--sizes", size, "--blocks", arguments.blocks, *(["--avx2"] if arguments.avx2 else [])]
    return {c: net_memory.in_own_process(__file__, "--memory-of", c.key, *options) for c in found}


def measure(size, found, model, rates, arguments, device):
    """Rows of one size, printed as they come."""
    memory = memories(found, size, arguments, device)
    if reason := net_memory.shortage(memory.values()):
        print(f"{size} is left out: {reason}")
        return []
    batch, height, width = shape(size)
    inputs = [torch.rand(batch, model.frames, height, width, device=device) for _ in range(3)]
    calls = arguments.calls or (1 if device.type == "cpu" else 8)
    work = batch * common.operations(model, height, width)
    crop_width, crop_height = (int(v) for v in arguments.error_crop.split("x"))
    crop = Crop(fold(model), inputs[0], (crop_height, crop_width))
    net_memory.give_back()
    # Models of several precisions share a run on a CPU alone, where TF32 does not exist.
    with torch.no_grad(), common.float32_products(device, arguments.precision[0]):
        runs, first = candidates.built(found, model, inputs[0], crop)
        times = common.interleaved(runs, arguments.repeats, device, inputs, warm=True, calls=calls)
    del runs
    net_memory.give_back()
    baseline, rows = next(iter(times)), []
    for candidate, seconds in times.items():
        median, low, high = common.spread(seconds)
        row = dict(size=size, candidate=candidate.label, precision=candidate.precision, median_s=median, min_s=low,
                   max_s=high, repeats=len(seconds), calls=calls, frames_per_s=batch / median,
                   tflops=work / median / 1e12,
                   of_floor=work / rates[candidate.precision] / median,
                   ratio=common.spread(times[baseline])[0] / median, error=crop.error(first[candidate]),
                   error_crop=f"{crop_width}x{crop_height}",
                   differs=common.relative(first[candidate], first[baseline]), **memory.get(candidate, {}))
        if candidate.kind == "engine":
            row["faster_than"] = {f"{other.label}, {other.precision}": common.paired_ratio(theirs, seconds)
                                  for other, theirs in times.items() if other.kind != "engine"}
        rows.append(row)
        net = f"{row['net_mib']:8.0f}" if "net_mib" in row else " " * 8
        print(f"{size:>12} {candidate.label:20} {candidate.precision:6} {median * 1e3:10.3f} {low * 1e3:9.3f}.."
              f"{high * 1e3:9.3f} {batch / median:8.3f} {work / median / 1e9:9.1f} {row['of_floor']:8.2f} "
              f"{row['ratio']:6.2f} {net} {row['error']:9.1e} {row['differs']:9.1e}", flush=True)
    for row in rows:
        if "faster_than" in row:
            print(f"{size:>12} {row['candidate']}, {row['precision']} is faster than: "
                  + "; ".join(f"{name} x{ratio:.2f}" for name, ratio in row["faster_than"].items()), flush=True)
    return rows


def main():
    arguments = parse()
    device = torch.device(arguments.device)
    torch.backends.cudnn.benchmark = True
    model = common.random_network(blocks=arguments.blocks).to(device)
    if arguments.memory_of:
        memory_of(arguments.memory_of, model, arguments.sizes[0], device)
        return
    if device.type != "cpu" and len(arguments.precision) > 1:
        raise SystemExit("several precisions share a run on a CPU alone; start one run for each")
    peer_names = arguments.peers or []
    if arguments.peers == []:
        peer_names = [name for name in peers.PEERS if peers.precisions(name, device)]
    backends = arguments.backends or [n for n in dblr_fast.backends() if get(n).unavailable(device) is None]
    print(common.machine(device))
    found = candidates.chosen(arguments.precision, backends, peer_names, device)
    print(f"{'size':>12} {'':20} {'':6} {'ms':>10} {'min..max':>20} {'frames/s':>8} {'GFLOP/s':>9} {'of floor':>8} "
          f"{'ratio':>6} {'net MiB':>8} {'error':>9} {'differs':>9}")
    rates, rows = {}, []
    for size in arguments.sizes:
        common.update_rates(rates, [c.precision for c in found], device)
        rows += measure(size, found, model, rates, arguments, device)
        if arguments.json:  # size by size: an interrupted run keeps what it has
            common.write_json(arguments.json, device, rows, peers=peers.versions(peer_names),
                              blocks=arguments.blocks,
                              matrix_product_gflops={p: rate / 1e9 for p, rate in rates.items()})


if __name__ == "__main__":
    main()
