"""What nvcc made of the CUDA kernels, read from the built library without a GPU.

Beside every kernel stands a line `// registers: N, spills: 0`: the most that any of its instantiations takes on any
architecture. Here the built code is held to it, and looked at for the matrix instructions that it is meant to hold.
"""

import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parent.parent / "csrc" / "cuda"
NOTE = re.compile(r"//.*?registers: (\d+).*?, spills: 0")
KERNEL = re.compile(r"^__global__ void\s+(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s+)?(\w+)\(", re.M)


def notes():
    """{kernel's name: registers written beside it} of every __global__ function in csrc/cuda."""
    found = {}
    for path in sorted([*SOURCES.glob("*.cuh"), *SOURCES.glob("*.cu")]):
        text, after = path.read_text(), 0
        for kernel in KERNEL.finditer(text):
            above = NOTE.findall(text[after:kernel.start()])
            found[kernel[1]] = int(above[-1]) if above else None
            after = kernel.end()
    return found


@lru_cache(maxsize=None)
def disassembler():
    """cuobjdump of the CUDA toolkit, or the one inside the triton wheel."""
    found = shutil.which("cuobjdump")
    if found:
        return found
    triton = pytest.importorskip("triton", reason="neither the CUDA toolkit nor triton is here to bring cuobjdump")
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not path.is_file():
        pytest.skip(f"this triton brings no cuobjdump ({path} is missing)")
    return str(path)


@pytest.fixture(scope="module")
def library():
    try:
        from dblr_fast import _cuda
    except ImportError as error:
        pytest.skip(f"built without the CUDA library ({error})")
    return _cuda


@lru_cache(maxsize=None)
def dump(library, *options):
    done = subprocess.run([disassembler(), *options, library.__file__], capture_output=True, text=True, check=True)
    return done.stdout


@lru_cache(maxsize=None)
def resources(library):
    """[(architecture, kernel, registers, stack bytes, local bytes)] of every kernel in the library."""
    rows, arch = [], None
    for line in dump(library, "--dump-resource-usage").splitlines():
        if m := re.match(r"\s*arch = (sm_\w+)", line):
            arch = m[1]
        elif m := re.match(r"\s*Function (\w+):", line):
            function = m[1]
        elif m := re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", line):
            rows.append((arch, function, *map(int, m.groups())))
    return rows


def kernel_of(function, names):
    """Which of our kernels a mangled name is: its length stands before it."""
    return next((n for n in names if f"{len(n)}{n}" in function), None)


def test_every_kernel_states_its_registers():
    assert len(notes()) >= 10
    assert not [name for name, budget in notes().items() if budget is None]


def test_launchers_ask_nothing_that_a_stream_under_capture_forbids_and_check_every_answer():
    """The self-check of device.cu runs when a backend is chosen, never within an op."""
    checked = {"cudaGetDevice", "cudaFuncSetAttribute", "cudaDeviceGetAttribute", "cudaLaunchKernelEx",
               "cudaOccupancyMaxActiveClusters", "cudaGetDriverEntryPointByVersion"}
    seen, faults = set(), []
    for path in sorted([*SOURCES.glob("*.cu"), *SOURCES.glob("*.cuh"), *SOURCES.glob("*.h")]):
        if path.stem == "device":
            continue
        code = re.sub(r"//.*", "", path.read_text())
        assert "<<<" not in code, f"{path.name} launches without `launch`"
        for call in re.finditer(r"\bcu(?:da)?[A-Z]\w*(?=\()", code):
            statement = re.split(r"[;{}]", code[:call.start()])[-1]
            seen.add(call[0])
            if call[0] in ("cudaGetLastError", "cudaGetErrorString"):  # of an error that is being told
                continue
            if call[0] not in checked or not re.search(r"\bcheck\(|cudaError_t error =", statement):
                faults.append(f"{path.name}: {call[0]}")
    assert not faults and checked <= seen, faults


def test_registers_and_spills(library):
    budgets, seen, faults = notes(), set(), []
    for arch, function, registers, stack, local in resources(library):
        name = kernel_of(function, budgets)
        if name is None:
            continue
        seen.add(name)
        if registers > budgets[name] or stack or local:
            faults.append(f"{name} on {arch}: {registers} registers of {budgets[name]}, stack {stack}, local {local}")
    assert not faults, "\n".join(faults)
    assert seen == set(budgets), f"not in the library: {set(budgets) - seen}"


def test_architectures(library):
    built = library.built_archs()
    seen = {arch.removeprefix("sm_") for arch, *_ in resources(library)}
    assert {a for a in built if "ptx" not in a} == seen
    for arch in (a.removesuffix("+ptx") for a in built if "ptx" in a):
        assert f"sm_{arch}" in dump(library, "--list-ptx")


def instructions(library, arch):
    """{our kernel: set of instruction names} of one architecture's machine code."""
    names, found, kernel = list(notes()), {}, None
    for line in dump(library, "--dump-sass", "-arch", f"sm_{arch}").splitlines():
        if m := re.match(r"\s*Function : (\w+)", line):
            kernel = kernel_of(m[1], names)
        elif kernel and (m := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9]*)", line)):
            found.setdefault(kernel, set()).add(m[1])
    return found


@pytest.mark.parametrize("arch", ["80", "89", "90a"])
def test_machine_code(library, arch):
    if arch not in library.built_archs():
        pytest.skip(f"built for {', '.join(library.built_archs())}, not for {arch} (DBLR_FAST_CUDA_ARCHS)")
    code = instructions(library, arch)
    for kernel, used in code.items():
        assert not used & {"LDL", "STL"}, f"{kernel} keeps values in local memory"
    for kernel in ("conv3x3_kernel", "stem_kernel", "weight_gradient_kernel"):
        assert "HMMA" in code[kernel], kernel
    hopper = {kernel for kernel in code if "sm90" in kernel and "pack" not in kernel}
    assert {"conv3x3_sm90_kernel", "conv3x3_sm90_deep_kernel", "weight_gradient_sm90_kernel"} == hopper
    for kernel in hopper:
        assert ("HGMMA" in code[kernel]) == (arch == "90a"), kernel
