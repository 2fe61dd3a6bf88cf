"""What the benchmarks share: counting, timing in turns, the machine's description, and result files."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # for python_ref; dblr_fast is the installed one

MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000000"}


def with_tuned_malloc():
    """Starts the script again with glibc's allocator keeping large blocks.

    Untuned, eager torch at 360p is 1.6 times slower for page faults alone: no peer is to lose by that.
    """
    if any(os.environ.get(k) != v for k, v in MALLOC.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})


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


def interleaved(candidates, repeats, device):
    """{name: [seconds]}: every candidate once a round, so that drift of the machine hits all alike."""
    times = {name: [] for name in candidates}
    for round_ in range(repeats + 1):
        for name, run in candidates.items():
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            if round_:  # the first is warm-up
                times[name].append(time.perf_counter() - start)
    return times


def peak_rate(device, seconds=1.0):
    """Operations a second of torch's float32 matrix product (1024^3): the measured ceiling of direct kernels."""
    a, b = torch.rand(1024, 1024, device=device), torch.rand(1024, 1024, device=device)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        synchronize(device)
        start = time.perf_counter()
        a @ b
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best


def spread(seconds):
    """(median, smallest, largest)"""
    return statistics.median(seconds), min(seconds), max(seconds)


def machine(device):
    """Device, versions and commit that a result belongs to."""
    import dblr_fast

    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    changed = subprocess.run(["git", "status", "--porcelain", "--", "csrc", "dblr_fast"], cwd=ROOT,
                             capture_output=True, text=True)
    facts = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__, "dblr_fast": dblr_fast.__version__, "python": platform.python_version(),
        "commit": commit.stdout.strip() + ("+changes" if changed.stdout.strip() else ""),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }
    if device.type == "cpu" and dblr_fast.backends()["cpu"] is None:
        from dblr_fast import _cpu

        facts["isa"] = _cpu.isa()
    return facts


def write_json(path, device, rows, **more):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**machine(device), **more, "rows": rows}, indent=1) + "\n")
    print(f"written: {path}")
