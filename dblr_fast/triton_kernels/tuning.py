"""How kernels start: which configuration, chosen once by measurement and kept on disk.

A configuration changes speed alone, never a bit of the result: where a block's shape decides the order of sums,
all configurations have one shape. DBLR_FAST_AUTOTUNE=off takes the first configuration of each list, and so does
a first launch while a CUDA graph is recorded or torch.compile traces, where nothing can be measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import triton

from .common import INTERPRETED, block_m, ceil_div

ROUNDS = 7  # timed runs of each configuration, of which the fastest counts
WARM_UP = 0.03  # seconds of work before them: a GPU that was idle runs slowly at first
BOXED = 4  # configurations that are also tried through descriptors
SAID_AFTER = 2.0  # seconds that compiling may take before a line says so

_lock = threading.RLock()
_chosen: dict[str, dict] = {}  # shape class -> configuration, of this process
_started: set = set()  # what has been compiled, or found compiled, in this process


@dataclass(frozen=True)
class Device:
    name: str
    shared: int  # bytes of shared memory that a block may take
    hopper: bool  # its matrix unit takes 64 x 256 sums of four warps from shared memory
    boxes: bool  # its copy engine takes tensor descriptors
    multiprocessors: int


@lru_cache(maxsize=None)
def device_facts(device: torch.device) -> Device:
    if device.type != "cuda":
        return Device("interpreter", 227 << 10, True, True, 4)
    properties, nvidia = torch.cuda.get_device_properties(device), torch.version.hip is None
    return Device(properties.name, getattr(properties, "shared_memory_per_block_optin", 64 << 10),
                  nvidia and properties.major == 9, nvidia and properties.major >= 9,
                  properties.multi_processor_count)


def _option(block_m, block_p, warps, stages, boxes=False, walk=False):
    return dict(BLOCK_M=block_m, BLOCK_P=block_p, BOXES=boxes, WALK=walk, num_warps=warps, num_stages=stages)


@lru_cache(maxsize=256)
def rows_to_walk(runs: int, height: int, multiprocessors: int) -> int:
    """How many rows of one of so many runs a block walks, so that all are done soonest: one block fills a
    multiprocessor, reads two rows more than it makes, and waits for weights as long as for about four."""
    def time(parts):
        return ceil_div(runs * parts, multiprocessors) * (ceil_div(height, parts) + 6)

    parts = min(range(1, min(height, 4 * ceil_div(multiprocessors, runs)) + 1), key=time)
    return ceil_div(height, parts)


def _walking(rows, fills, boxed, walked, facts) -> list[dict]:
    """Configurations that walk. By count they pay on Hopper alone: before, shared memory is the bound of such products;
    it must hold all weights, three rows under way, each three times, and half a row's sums on their way out."""
    pixels = 128
    shared = 9 * rows * 128 + 3 * 3 * pixels * 128 + pixels * rows + 64
    if rows != 64 or not facts.hopper or shared > facts.shared or not fills(pixels, walked):
        return []
    ways = (False, True) if boxed and facts.boxes else (False,)
    return [_option(rows, pixels, 8, 3, boxes, True) for boxes in ways]


def convolution(dtype, cout, tf32, sums, taps, boxed, walked, device) -> list[dict]:
    """Configurations of `conv3x3`; shared memory holds num_stages steps of weights and pixels.

    boxed: a row's pixels where maps may be read through descriptors, or 0; walked: the same where a block may walk
    down the picture (walk.py). Each of the first few configurations then has a twin that reads so, and two walk, unless
    their runs of pixels would leave more than a sixth of their blocks empty.
    """
    rows, facts = block_m(cout), device_facts(device)
    if INTERPRETED:
        return [_option(rows, 128, 1, 1)]
    if dtype == torch.float32 and not tf32:
        found = [(min(rows, 64), 64, 8, 2), (min(rows, 64), 64, 4, 2), (min(rows, 64), 128, 8, 2)]
    elif rows == 128:
        found = [(128, 256, 8, 3), (128, 128, 8, 3), (128, 128, 4, 3), (64, 256, 4, 3), (128, 128, 8, 2),
                 (64, 128, 4, 3)]
    else:
        found = [(rows, 128, 4, 4), (rows, 128, 4, 3), (rows, 128, 4, 2)]
        if not sums:  # which keep more in registers than 256 pixels leave room for
            found = [(rows, 256, 4, 3), (rows, 256, 4, 2), (rows, 256, 8, 3), *found]
    if not facts.hopper or dtype == torch.float32:  # 64 x 256 sums of four warps leave no registers for operands
        found = [f for f in found if f[0] * f[1] <= 64 * 32 * f[2]]

    def fits(m, p, _, stages):
        return max(stages * (m + p) * 128, m * p * 4) <= facts.shared  # steps of 128 bytes; the sums on their way out

    options = [_option(*f) for f in found if fits(*f)]
    if sums or taps:  # the block's shape decides the order of sums
        same = ("BLOCK_M", "BLOCK_P", "num_warps")
        options = [o for o in options if all(o[k] == options[0][k] for k in same)]

    def fills(run, width):
        return 0 < ceil_div(width, run) * run * 5 <= width * 6

    if dtype.itemsize == 2 and not sums:
        if boxed and facts.boxes:
            options += [o | dict(BOXES=True) for o in options[:BOXED] if fills(o["BLOCK_P"], boxed)]
        if not taps:
            options += _walking(rows, fills, boxed, walked, facts)
    return options


def weight_gradient(dtype, cin, cout, tf32, device) -> list[dict]:
    """Configurations of `weight_gradient_partial`: of one shape, which decides the ranges of pixels."""
    side = 64 if dtype.itemsize == 2 or tf32 else 32
    if INTERPRETED:
        side = 128
    shape = dict(BLOCK_M=min(block_m(cout), side), BLOCK_C=min(block_m(cin), side), BLOCK_P=side,
                 num_warps=4 if device_facts(device).hopper else 8)
    step = side * 4 * side * dtype.itemsize  # pixels of dy and, three times, of x
    stages = (2, 3) if 3 * step <= device_facts(device).shared else (2,)
    return [shape | dict(num_stages=n) for n in stages]


def launch(kernel, grid, arguments: dict, options: list[dict] | None = None) -> None:
    """Starts the kernel on the current device and stream.

    grid: blocks, as a number, a tuple or a function of the configuration.

    arguments: of the kernel; what depends on the configuration as a function of it.
    options: configurations to choose from, each {argument or num_warps or num_stages: value}.
    """
    options = options or [{}]
    option = options[0]
    if len(options) > 1 and not INTERPRETED:
        option = _choose(kernel, grid, arguments, options)
    _start(kernel, grid, arguments, option)


def _start(kernel, grid, arguments, option):
    blocks = grid(option) if callable(grid) else grid
    bound = kernel[blocks if isinstance(blocks, tuple) else (blocks,)]
    arguments = {name: value(option) if callable(value) else value for name, value in arguments.items()}
    if INTERPRETED:
        bound(**arguments, **option)
        return
    key = (_shape_class(kernel, arguments), *option.values())
    with nullcontext() if key in _started else _saying_when_slow():
        bound(**arguments, **option, enable_fp_fusion=True)
    _started.add(key)


_seconds_compiling = 0.0


@contextmanager
def _saying_when_slow():
    """One line on stderr when compiling has taken over 2 s altogether; compiled kernels are kept by Triton."""
    global _seconds_compiling
    timer = None
    if _seconds_compiling < SAID_AFTER:
        timer = threading.Timer(SAID_AFTER - _seconds_compiling, print, (
            "dblr_fast: compiling Triton kernels for this device; they are kept on disk, later runs start at once",
        ), dict(file=sys.stderr, flush=True))
        timer.daemon = True
        timer.start()
    before = time.perf_counter()
    try:
        yield
    finally:
        _seconds_compiling += time.perf_counter() - before
        if timer is not None:
            timer.cancel()


def _shape_class(kernel, arguments) -> str:
    """What decides a configuration's speed: the kernel, its constants, its pixels to a power of two, its types."""
    parts = [kernel.__name__]
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            parts.append(f"{name}:{str(value.dtype).removeprefix('torch.')}")
        elif name == "pixels":
            parts.append(f"pixels:2^{value.bit_length()}")
        elif name.isupper():
            parts.append(f"{name}={value}")
    return " ".join(parts)


def _choose(kernel, grid, arguments, options):
    device = next(v.device for v in arguments.values() if isinstance(v, torch.Tensor))
    if not enabled():
        return options[0]
    boxes = " | boxes" if any(option.get("BOXES") for option in options) else ""
    key = f"{device_facts(device).name} | {_shape_class(kernel, arguments)}{boxes}"
    option = _chosen.get(key)
    if option in options:
        return option
    with _lock:
        kept = _read(device)
        if kept.get(key) in options:
            _chosen[key] = kept[key]
            return _chosen[key]
        if torch.cuda.is_current_stream_capturing() or torch.compiler.is_compiling():
            return options[0]
        _chosen[key] = _fastest(kernel, grid, arguments, options)
        _write(device, key, _chosen[key])
        return _chosen[key]


def enabled() -> bool:
    return os.environ.get("DBLR_FAST_AUTOTUNE", "on").lower() not in ("off", "0", "false", "no")


def _fastest(kernel, grid, arguments, options) -> dict:
    """The configuration whose fastest run took the least time on the device.

    All are compiled first and then run in turns, so that the clock, which rises with work, favours none. One that the
    device refuses is never chosen, unless it refuses all: then the first says why.
    """
    able = []
    for option in options:
        try:
            _start(kernel, grid, arguments, option)
            able.append(option)
        except triton.runtime.errors.OutOfResources:
            continue
    if len(able) < 2:
        return (able or options)[0]
    end = time.perf_counter() + WARM_UP
    while time.perf_counter() < end:
        _seconds(kernel, grid, arguments, able[0])
    times = [float("inf")] * len(able)
    for _ in range(ROUNDS):
        for i, option in enumerate(able):
            times[i] = min(times[i], _seconds(kernel, grid, arguments, option))
    return able[times.index(min(times))]


def _seconds(kernel, grid, arguments, option) -> float:
    """Device time of one run."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    _start(kernel, grid, arguments, option)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def cache_folder() -> Path:
    return Path(os.environ.get("DBLR_FAST_CACHE") or Path.home() / ".cache" / "dblr_fast")


@lru_cache(maxsize=None)
def _source_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def cache_file(device: torch.device) -> Path:
    """One file for each device's name, Triton's version and the kernels' source."""
    name = "".join(c if c.isalnum() else "-" for c in device_facts(device).name)
    return cache_folder() / f"triton-{name}-{triton.__version__}-{_source_hash()}.json"


def _read(device) -> dict[str, dict]:
    """What the file holds; nothing when it is missing, unreadable or not what this module writes."""
    try:
        found = json.loads(cache_file(device).read_text(encoding="utf-8"))
        return {k: v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}
    except (OSError, ValueError, RuntimeError):  # RuntimeError: there is no home folder
        return {}


def _write(device, key, option) -> None:
    """Adds one choice: the file is replaced as a whole. A folder that cannot be written is left alone."""
    try:
        path = cache_file(device)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(_read(device) | {key: option}, file, indent=1, sort_keys=True)
        os.replace(name, path)
    except (OSError, RuntimeError):
        pass
