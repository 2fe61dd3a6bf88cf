"""What was built, what it leans on, and what the build says when it cannot do what it was asked for."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools

import dblr_fast
from dblr_fast import _cpu

ROOT = Path(__file__).resolve().parent.parent
CPU_SOURCES = ROOT / "csrc" / "cpu"


def test_build_info():
    info = _cpu.build_info()
    assert info["version"] == dblr_fast.__version__
    assert info["compiler"] and "-O3" in info["flags"]
    assert info["isas"].split() == list(_cpu.isas())
    assert _cpu.isas()["portable"] is None
    assert _cpu.isas()[_cpu.isa()] is None


def test_extension_needs_neither_torch_nor_openmp_nor_cuda():
    ldd = shutil.which("ldd")
    if ldd is None:
        pytest.skip("there is no ldd to list what the extension links")
    needed = subprocess.run([ldd, _cpu.__file__], capture_output=True, text=True, check=True).stdout
    assert "libc.so" in needed
    for library in ("torch", "c10", "gomp", "omp", "cuda"):
        assert f"lib{library}" not in needed


def included(path, seen):
    """Every header that a source reaches; headers that are not ours by name."""
    for name in re.findall(r'#include ["<]([^">]+)[">]', path.read_text()):
        if name not in seen:
            seen.add(name)
            if (path.parent / name).is_file():
                included(path.parent / name, seen)
    return seen


def test_kernel_files_share_no_code_with_the_rest():
    """An inline function compiled with AVX-512 must not become the whole program's copy of it."""
    files = sorted([*CPU_SOURCES.glob("kernels_*.cpp"), *CPU_SOURCES.glob("bf16_*.cpp")])
    assert len(files) == 8
    ours = {"kernels_source.h", "kernels.h", "vec.h", "half.h", "winograd_points.h",
            *(path.name for path in CPU_SOURCES.glob("k_*.h"))}
    for path in files:
        assert included(path, set()) <= ours | {"cstdint", "immintrin.h", "arm_neon.h"}


def test_kernel_objects_define_their_table_alone():
    objects = sorted(ROOT.glob("build/*/CMakeFiles/dblr_cpu.dir/cpu/*.o"))
    objects = [path for path in objects if re.match(r"(kernels|bf16)_", path.name)]
    if not objects or shutil.which("nm") is None:
        pytest.skip("there are no object files in build/ to look into, or no nm")
    for path in objects:
        lines = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout.splitlines()
        shared = [line for line in lines if not re.search(r" [a-z] ", line)]
        defined = [line for line in shared if " U " not in line]
        assert len(defined) == 1 and re.search("dblr::(table|bf16)_", defined[0]), path
        allowed = {"memcpy", "memset", "memmove", "__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"}
        assert {line.split(" U ")[1] for line in shared if " U " in line} <= allowed, path


@pytest.fixture
def setup_module(monkeypatch):
    if importlib.util.find_spec("pybind11") is None:
        pytest.skip("pybind11 is not installed, without which setup.py does not load")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    spec = importlib.util.spec_from_file_location("dblr_fast_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("DBLR_FAST_CUDA", "CUDACXX", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    monkeypatch.setattr(module.shutil, "which", lambda name, path=None: None)
    return module


def test_cuda_auto_without_nvcc_says_so(setup_module, capsys):
    assert setup_module.wanted_nvcc() is None
    assert capsys.readouterr().out == "dblr_fast: nvcc was not found, so the CPU kernels alone are built.\n"


def test_cuda_on_without_nvcc_fails_in_one_sentence(setup_module, monkeypatch):
    monkeypatch.setenv("DBLR_FAST_CUDA", "on")
    with pytest.raises(SystemExit, match="DBLR_FAST_CUDA=on needs nvcc, and none was found"):
        setup_module.wanted_nvcc()


def test_cuda_with_nvcc(setup_module, monkeypatch, tmp_path):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    for choice, expected in (("auto", str(nvcc)), ("on", str(nvcc)), ("off", None)):
        monkeypatch.setenv("DBLR_FAST_CUDA", choice)
        assert setup_module.wanted_nvcc() == expected


def test_cuda_choice_is_checked(setup_module, monkeypatch):
    monkeypatch.setenv("DBLR_FAST_CUDA", "maybe")
    with pytest.raises(SystemExit, match="must be auto, on or off, got 'maybe'"):
        setup_module.wanted_nvcc()


def test_missing_cmake_is_said(setup_module):
    with pytest.raises(SystemExit, match="needs cmake"):
        setup_module.CMakeBuild.call("--version")


@pytest.fixture
def cuda():
    try:
        from dblr_fast import _cuda
    except ImportError as error:
        pytest.skip(f"built without the CUDA library ({error})")
    return _cuda


def test_cuda_library_names_what_it_has(cuda):
    assert cuda.built_archs() and cuda.build_info()["runtime"] >= 12000
    devices, reason = cuda.devices()
    assert (reason is None) == bool(devices)
    for i, device in enumerate(devices):
        assert device["name"] and device["memory"] > 0 and device["multiprocessors"] > 0
        assert len(device["capability"]) == 2
        assert cuda.self_check(i) is None
    if not devices:
        assert isinstance(reason, str) and reason
        assert cuda.self_check(0)


def test_cuda_library_loads_without_driver(cuda):
    code = "from dblr_fast import _cuda; print(_cuda.built_archs())"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
