"""Builds what csrc/emulator makes of the CUDA kernels, and imports it.

    kernels = emulator.load("_kernels_emulated")

DBLR_EMULATOR_SANITIZE=address in the environment builds and loads with AddressSanitizer; Python must then have been
started with its library preloaded: `environment("address")` is what to give to a child. DBLR_EMULATOR_BUILT names a
folder to take modules from as they are, without building (mutants.py).
"""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "csrc"


def tool(name):
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if path is None:
        raise RuntimeError(f"Building the emulator needs {name}, and none was found: pip install {name}.")
    return path


def call(*arguments):
    done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"Building the emulator failed: {' '.join(arguments)}\n{done.stdout[-8000:]}")


def build(target, sanitize=None, sources=SOURCES, folder=None):
    """Path of the built module or program, brought up to date.

    sanitize: None or e.g. "address"; sources: a csrc folder; folder: where to build, build/emulator by default.
    """
    folder = Path(folder or ROOT / "build" / "emulator") / (sanitize or "plain").replace(",", "-")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be building too
        call(tool("cmake"), "-S", str(Path(sources) / "emulator"), "-B", str(folder), "-G", "Ninja",
             f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DPython_EXECUTABLE={sys.executable}",
             f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DDBLR_EMULATOR_SANITIZE={sanitize or ''}")
        jobs = os.environ.get("DBLR_FAST_JOBS")
        call(tool("ninja"), "-C", str(folder), *(["-j", jobs] if jobs else []), target)
    return folder / (target + (sysconfig.get_config_var("EXT_SUFFIX") if target.startswith("_") else ""))


def load(name, sanitize=None):
    """The module `name` (_kernels_emulated or _cuda_emulated), built if it is not up to date."""
    if name in sys.modules:
        return sys.modules[name]
    built = os.environ.get("DBLR_EMULATOR_BUILT")
    if built:
        path = Path(built) / (name + sysconfig.get_config_var("EXT_SUFFIX"))
    else:
        path = build(name, sanitize or os.environ.get("DBLR_EMULATOR_SANITIZE") or None)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module


def environment(sanitize="address"):
    """Environment of a Python that loads modules built with a sanitizer."""
    names = {"address": "libasan.so", "undefined": "libubsan.so"}
    compiler = os.environ.get("CXX", "g++")
    # The C++ library comes along, or the sanitizer would look for its functions before it is loaded.
    libraries = [subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True,
                                check=True).stdout.strip()
                 for name in [*(names[part] for part in sanitize.split(",")), "libstdc++.so"]]
    return {**os.environ, "DBLR_EMULATOR_SANITIZE": sanitize, "LD_PRELOAD": " ".join(libraries),
            "ASAN_OPTIONS": "detect_leaks=0"}
