"""The environment that CPU benchmarks run in. Imports no torch: libraries read these variables as they load."""

import os
import sys

MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000000"}
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "OV_CPU_MAX_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "DBLR_FAST_ISA": "avx2"}


def prepare():
    """Starts the script again with glibc's allocator keeping large blocks and, for --avx2, AVX2 the limit.

    Untuned, eager torch at 360p is 1.6 times slower for page faults alone: no peer is to lose by that.
    """
    wanted = MALLOC | (AVX2 if "--avx2" in sys.argv[1:] else {})
    if any(os.environ.get(k) != v for k, v in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})


def limited_to_avx2():
    return os.environ.get("ONEDNN_MAX_CPU_ISA") == "AVX2"
