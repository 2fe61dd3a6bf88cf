"""The C++ of the CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer: csrc/cpu/selftest.cpp."""

import subprocess
import sys

import pybind11
from emulator import ROOT, SOURCES, call, tool

SANITIZERS = "address,undefined"


def test_every_op_on_every_instruction_set():
    folder = ROOT / "build" / "selftest"
    call(tool("cmake"), "-S", str(SOURCES), "-B", str(folder), "-G", "Ninja", f"-DDBLR_FAST_SANITIZE={SANITIZERS}",
         "-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DPython_EXECUTABLE={sys.executable}",
         f"-Dpybind11_DIR={pybind11.get_cmake_dir()}")
    call(tool("ninja"), "-C", str(folder), "selftest")
    done = subprocess.run([folder / "selftest"], capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "avx2: done" in done.stdout or "avx2: left out" in done.stdout
