"""The C++ of the CPU kernels under sanitizers: csrc/cpu/selftest.cpp."""

import subprocess
import sys

import pybind11
import pytest
from emulator import ROOT, SOURCES, call, tool


def selftest(sanitizers, *arguments):
    """What the self-test prints, built under these sanitizers; a report of theirs fails it."""
    folder = ROOT / "build" / f"selftest-{sanitizers.replace(',', '-')}"
    call(tool("cmake"), "-S", str(SOURCES), "-B", str(folder), "-G", "Ninja", f"-DDBLR_FAST_SANITIZE={sanitizers}",
         "-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DPython_EXECUTABLE={sys.executable}",
         f"-Dpybind11_DIR={pybind11.get_cmake_dir()}")
    call(tool("ninja"), "-C", str(folder), "selftest")
    done = subprocess.run([folder / "selftest", *arguments], capture_output=True, text=True)
    print(done.stdout)
    if "FATAL: ThreadSanitizer: unexpected memory mapping" in done.stderr:  # gcc is older than the kernel's layout
        pytest.skip(f"ThreadSanitizer does not start on this machine: {done.stderr.strip()[:200]}")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_every_op_on_every_instruction_set():
    printed = selftest("address,undefined")
    assert "avx2: done" in printed or "avx2: left out" in printed


def test_threads_that_fall_behind_in_a_network():
    """No thread reads or writes what another has not done with, though layers begin before the last one is done."""
    assert "strips on" in selftest("thread", "strips")
