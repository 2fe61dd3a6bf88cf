"""The C++ of the CPU kernels under sanitizers: csrc/cpu/selftest.cpp."""

import subprocess
import sys

import pybind11
import pytest
from emulator import ROOT, SOURCES, call, tool


def selftest(sanitizers, *runs):
    """What the self-test prints, built under these sanitizers; a report of theirs fails it.

    runs: the arguments of processes side by side.
    """
    folder = ROOT / "build" / f"selftest-{sanitizers.replace(',', '-')}"
    call(tool("cmake"), "-S", str(SOURCES), "-B", str(folder), "-G", "Ninja", f"-DDBLR_FAST_SANITIZE={sanitizers}",
         "-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DPython_EXECUTABLE={sys.executable}",
         f"-Dpybind11_DIR={pybind11.get_cmake_dir()}")
    call(tool("ninja"), "-C", str(folder), "selftest")
    started = [subprocess.Popen([folder / "selftest", *run], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
               for run in runs]
    done = [(*process.communicate(), process.returncode) for process in started]
    printed = "".join(out for out, _, _ in done)
    print(printed)
    for out, errors, code in done:
        if "FATAL: ThreadSanitizer: unexpected memory mapping" in errors:  # gcc is older than the kernel's layout
            pytest.skip(f"ThreadSanitizer does not start on this machine: {errors.strip()[:200]}")
        assert code == 0, out[-4000:] + errors[-4000:]
    return printed


def test_every_op_on_every_instruction_set():
    printed = selftest("address,undefined", ("0", "2"), ("1", "2"))
    assert "strips on" in printed and (printed.count("avx2: done") == 2 or "avx2: left out" in printed)


def test_threads_that_fall_behind_in_a_network():
    """No thread reads or writes what another has not done with, though layers begin before the last one is done."""
    assert "strips on" in selftest("thread", ("strips",))
