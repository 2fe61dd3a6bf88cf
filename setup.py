"""Builds the native parts of dblr_fast with CMake and Ninja; all metadata is in pyproject.toml.

Environment variables:
    DBLR_FAST_CUDA        auto (default): build the CUDA library when nvcc is found; on: fail without nvcc; off
    DBLR_FAST_CUDA_ARCHS  compute capabilities to build for, e.g. "80;90a" (default "80;89;90a")
    DBLR_FAST_SANITIZE    e.g. "address,undefined": also build the C++ self-test with these sanitizers
    DBLR_FAST_JOBS        compilers to run at a time (default: one a core)
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def tool(name, variable=None):
    """Path of a build tool: the environment variable's, else that of the running Python, else PATH's."""
    for path in (os.environ.get(variable or ""), shutil.which(name, path=str(Path(sys.executable).parent)),
                 shutil.which(name)):
        if path:
            return path
    return None


def find_nvcc():
    """Path of nvcc, or None. Decided by the compiler alone: a build machine needs no GPU."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    in_home = Path(home) / "bin" / "nvcc"
    return tool("nvcc", "CUDACXX") or (str(in_home) if in_home.is_file() else None)


def wanted_nvcc():
    choice = os.environ.get("DBLR_FAST_CUDA", "auto").lower()
    if choice not in ("auto", "on", "off"):
        sys.exit(f"DBLR_FAST_CUDA must be auto, on or off, got {choice!r}.")
    nvcc = None if choice == "off" else find_nvcc()
    if choice == "on" and nvcc is None:
        sys.exit("DBLR_FAST_CUDA=on needs nvcc, and none was found on PATH, in CUDACXX or in CUDA_HOME: "
                 "install the CUDA toolkit, or set DBLR_FAST_CUDA=auto.")
    if choice == "auto" and nvcc is None:
        print("dblr_fast: nvcc was not found, so the CPU kernels alone are built.")
    return nvcc


class CMakeBuild(build_ext):
    """One CMake project gives both extension modules."""

    def run(self):
        self.nvcc = wanted_nvcc()
        self.extensions = [e for e in self.extensions if self.nvcc or not e.name.endswith("._cuda")]
        build = ROOT / "build" / "inplace" if self.inplace else Path(self.build_temp).resolve()
        if not self.inplace and build.exists():
            shutil.rmtree(build)  # its cache may name tools of an isolated environment that is gone
        build.mkdir(parents=True, exist_ok=True)
        into = Path(self.get_ext_fullpath(self.extensions[0].name)).resolve().parent
        into.mkdir(parents=True, exist_ok=True)
        self.configure(build, into)
        jobs = os.environ.get("DBLR_FAST_JOBS")
        self.call("--build", str(build), *(["--parallel", jobs] if jobs else []))

    def configure(self, build, into):
        ninja = tool("ninja")
        arguments = ["-S", str(ROOT / "csrc"), "-B", str(build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
                     f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={into}", f"-DPython_EXECUTABLE={sys.executable}",
                     f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                     f"-DDBLR_FAST_SANITIZE={os.environ.get('DBLR_FAST_SANITIZE', '')}"]
        if ninja:
            arguments.append(f"-DCMAKE_MAKE_PROGRAM={ninja}")
        arguments.append(f"-DDBLR_FAST_CUDA={'ON' if self.nvcc else 'OFF'}")
        if self.nvcc:
            archs = os.environ.get("DBLR_FAST_CUDA_ARCHS", "").replace(",", ";").replace(" ", "")
            arguments += [f"-DCMAKE_CUDA_COMPILER={self.nvcc}", f"-DDBLR_FAST_CUDA_ARCHS={archs}"]
        self.call(*arguments)

    @staticmethod
    def call(*arguments):
        cmake = tool("cmake")
        if cmake is None:
            sys.exit("Building dblr_fast needs cmake 3.24 or newer, and none was found: pip install cmake ninja.")
        try:
            subprocess.run([cmake, *arguments], check=True)
        except subprocess.CalledProcessError as error:
            sys.exit(f"Building dblr_fast failed in cmake (exit status {error.returncode}); "
                     "the compiler's message is above.")


setup(ext_modules=[Extension("dblr_fast._cpu", []), Extension("dblr_fast._cuda", [])],
      cmdclass={"build_ext": CMakeBuild})
