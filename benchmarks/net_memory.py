"""Net memory: peak resident memory of a first run over what was held before it, in a process of its own."""

import ctypes
import gc
import json
import resource
import subprocess
import sys
from pathlib import Path

STATUS, CLEAR, MACHINE = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/meminfo")


def _mib(path, key):
    line = next(line for line in path.read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) / 1024


def give_back():
    """What was freed goes back to the system: it must not count as held before a run."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        pass  # not glibc


def measure(run):
    """dict(before_mib, peak_mib, net_mib) of one call."""
    give_back()
    try:
        CLEAR.write_text("5")  # the peak starts again from here
        before = _mib(STATUS, "VmRSS")
        run()
        peak = _mib(STATUS, "VmHWM")
    except OSError:  # no such files: the peak of the process's life, which building may have set
        scale = 2**20 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
        run()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
    return dict(before_mib=before, peak_mib=peak, net_mib=peak - before)


def report(run):
    """Prints measure()'s dict as the last line, for the process that waits for it."""
    print("\n" + json.dumps(measure(run)))


def in_own_process(script, *arguments):
    """What a script says that ends in report(); {} and a line when it cannot run, for the times still count."""
    done = subprocess.run([sys.executable, str(script), *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]
        print(f"no memory of {arguments[1]}: {reason}")
        return {}
    return json.loads(done.stdout.splitlines()[-1])


def median_of_processes(count, script, *arguments):
    """in_own_process() so many times, an odd number, and of these the one with the median net memory."""
    done = [memory for memory in (in_own_process(script, *arguments) for _ in range(count)) if memory]
    return sorted(done, key=lambda memory: memory["net_mib"])[len(done) // 2] if done else {}


def shortage(measured):
    """Why these candidates cannot share a process, each keeping its buffers between its turns, or None.

    measured: what measure() gave for each.
    """
    needed = sum(memory.get("net_mib", 0) for memory in measured)
    try:
        free = _mib(MACHINE, "MemAvailable")
    except (OSError, StopIteration):
        return None
    if needed < free:
        return None
    return f"together they need {needed / 1024:.1f} GiB and {free / 1024:.1f} are free; name fewer with --peers"
