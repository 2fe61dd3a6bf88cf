"""What the benchmarks share: counting, timing in turns, the machine's description, and result files."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import environment
import processor
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # for python_ref; dblr_fast is the installed one


@torch.no_grad()
def random_network(**options):
    """A DBLRNet in evaluation mode of which no layer is trivial: He weights, batch norms of random statistics.

    The second batch norm of each block has a small gamma, so that the blocks keep maps at the scale of the picture:
    errors then mean what they mean in a trained network.
    """
    import dblr_fast

    torch.manual_seed(0)
    model = dblr_fast.DBLRNet(**options).eval()
    for m in model.modules():
        if isinstance(m, (torch.nn.Conv2d, torch.nn.Conv3d)):
            m.weight.normal_(0, (2 / m.weight[0].numel()) ** 0.5)
            m.bias.uniform_(-0.1, 0.1)
        elif isinstance(m, torch.nn.BatchNorm2d):
            m.weight.uniform_(0.5, 1.5)
            m.bias.uniform_(-0.1, 0.1)
            m.running_mean.uniform_(-0.1, 0.1)
            m.running_var.uniform_(0.5, 1.5)
    for block in model.blocks:
        block.second.bn.weight.mul_(0.3)
    return model


def shape(size):
    """(batch, height, width) of WIDTHxHEIGHT or BATCHxWIDTHxHEIGHT."""
    *batch, width, height = (int(v) for v in size.split("x"))
    return (batch[0] if batch else 1), height, width


def operations(model, height, width):
    """Operations (a multiply-add counts two) of one frame, as direct convolutions (3.455 TFLOP at 1280x720)."""
    per_pixel = 0
    for name, p in model.named_parameters():
        if p.dim() >= 4:
            times = model.frames - 2 if p.dim() == 5 and name.startswith("conv1") else 1
            per_pixel += p.numel() * times
    return 2 * per_pixel * height * width


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(run, device):
    """Seconds of one call: on a GPU between device events, elsewhere by the clock."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


# Seconds before each measurement on a CPU. Threads of the library that ran before wait for more work by spinning, and
# would take the processor from the next one's; after a while they go to sleep.
PAUSE = 0.3


def interleaved(candidates, repeats, device, inputs=None, warm=False, calls=1):
    """{name: [seconds]}: every candidate once a round, so that drift of the machine hits all alike.

    calls: how many, one after another, make a measurement; the seconds are of one.
    inputs: what candidates are called with in turn, so that nothing stays in cache; None: they take nothing.
    warm: whether each has run before, which is warm-up enough on a CPU.
    """
    times = {name: [] for name in candidates}
    warm_up = 3 if device.type == "cuda" else int(not warm)
    for round_ in range(repeats + warm_up):
        for name, run in candidates.items():
            def measured(run=run, round_=round_):
                for i in range(calls):
                    run(*(() if inputs is None else (inputs[(round_ + i) % len(inputs)],)))
            synchronize(device)
            if device.type != "cuda":
                time.sleep(PAUSE)  # until other libraries' waiting threads sleep, see above
            seconds = timed(measured, device) / calls
            if round_ >= warm_up:
                times[name].append(seconds)
    return times


DTYPES = {"exact": torch.float32, "fast": torch.float32, "half": torch.float16, "bf16": torch.bfloat16}


@contextmanager
def float32_products(device, precision):
    """cuDNN and cuBLAS take TF32 for `fast` alone."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "fast"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def peak_rate(device, precision="exact", seconds=0.3):
    """Operations a second of torch's matrix product on random data: the measured ceiling of direct kernels."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = DTYPES[precision] if device.type == "cuda" or precision == "bf16" else torch.float32
    a, b = (torch.rand(size, size, device=device).sub_(0.5).to(dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    with float32_products(device, precision):
        while time.perf_counter() < end:
            best = min(best, timed(lambda: a @ b, device))
    return 2 * size**3 / best


def update_rates(rates, precisions, device):
    """Measures the matrix product in each precision; keeps the fastest so far, lest a busy moment lower the floor."""
    for precision in dict.fromkeys(["exact", *precisions]):
        # A processor without bf16 products emulates them: its floor is float32's.
        rates[precision] = max(peak_rate(device, precision), rates.get(precision, 0), rates.get("exact", 0))
    print("matrix product: " + ", ".join(f"{p} {rate / 1e9:.0f} GFLOP/s" for p, rate in rates.items()))


def relative(got, wanted):
    """RMS of the difference over the RMS of what was wanted."""
    got, wanted = got.double(), wanted.double()
    return ((got - wanted).square().mean() / wanted.square().mean()).sqrt().item()


def paired_ratio(theirs, ours):
    """Median over rounds of theirs/ours: what two candidates' times of one round share, drift, cancels."""
    return statistics.median(a / b for a, b in zip(theirs, ours))


def spread(seconds):
    """(median, smallest, largest)"""
    return statistics.median(seconds), min(seconds), max(seconds)


def machine(device):
    """Device, versions and commit that a result belongs to; DBLR_FAST_COMMIT names it where git cannot."""
    import dblr_fast

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    changed = subprocess.run(["git", "status", "--porcelain", "--", "csrc", "dblr_fast"], cwd=ROOT,
                             capture_output=True, text=True)
    facts = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor.name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__, "dblr_fast": dblr_fast.__version__, "python": platform.python_version(),
        "commit": os.environ.get("DBLR_FAST_COMMIT")
                  or commit.stdout.strip() + ("+changes" if changed.stdout.strip() else ""),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }
    if environment.limited_to_avx2():
        facts["limited_to"] = "avx2"
    if device.type == "cpu" and dblr_fast.backends()["cpu"] is None:
        from dblr_fast import _cpu

        facts["isa"] = _cpu.isa()
    return facts


def write_json(path, device, rows, **more):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**machine(device), **more, "rows": rows}, indent=1) + "\n")
    print(f"written: {path}")
