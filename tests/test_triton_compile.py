"""Gates of the Triton kernels without a GPU: what the backend launches compiles for each target, on its matrix unit.

The launches of a training step and of a network are recorded, not run, with the configurations of the target, and
compiled ahead of time. Shared memory must fit what a block may take there.
"""

import re
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from cpu_cases import ours

triton = pytest.importorskip("triton", reason="triton is not installed: pip install dblr_fast[test]")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.tools.tensor_descriptor import TensorDescriptor  # noqa: E402

from dblr_fast.backends.triton_backend import TritonBackend  # noqa: E402
from dblr_fast.triton_kernels import common, convolution, tuning  # noqa: E402

SHARED = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, "gfx942": 64 << 10}
PRODUCTS = ("conv3x3", "weight_gradient_partial", "planes_convolution", "planes_gradient_partial")
TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}

pytestmark = pytest.mark.skipif(common.INTERPRETED, reason="TRITON_INTERPRET=1: nothing is compiled")


def target_of(arch):
    return GPUTarget("hip", arch, 64) if isinstance(arch, str) else GPUTarget("cuda", arch, 32)


@pytest.fixture
def recorded(monkeypatch):
    """Function (arch, op, dtype, precision) -> {what it is: (kernel, arguments, configurations)} of its launches.

    op: an op's name, or a function of the type that launches.
    """
    def record(arch, op, dtype=torch.float16, level="exact", width=5):
        launches = {}

        def launch(kernel, grid, arguments, options=None):
            launches.setdefault(tuning._shape_class(kernel, arguments), (kernel, arguments, options or [{}]))

        monkeypatch.setattr(tuning, "device_facts", lambda device: tuning.Device(
            str(arch), SHARED[arch], arch == 90, arch == 90, 100))
        monkeypatch.setattr(tuning, "launch", launch)
        if callable(op):
            op(dtype)
        else:
            ours(TritonBackend().at(level), (op, "real", 2, 3, width, op == "block"), dtype)
        return launches

    return record


def compiled(arch, kernel, arguments, option):
    values = {k: v(option) if callable(v) else v for k, v in arguments.items()}
    values |= {k: v for k, v in option.items() if k.isupper()}
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        value = values[name]
        if isinstance(value, torch.Tensor):
            signature[name], attributes[(i,)] = TYPES[value.dtype], [["tt.divisibility", 16]]
        elif isinstance(value, TensorDescriptor):
            box = ", ".join(map(str, value.block_shape))
            signature[name] = f"tensordesc<{TYPES[value.base.dtype][1:]}[{box}]>"
        elif name.isupper() or value is None:
            signature[name], constants[name] = "constexpr", value
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    options = {k: v for k, v in option.items() if not k.isupper()} | {"enable_fp_fusion": True}
    return triton.compile(ASTSource(kernel, signature, constants, attributes), target=target_of(arch), options=options)


def dumped(program, what):
    """What cuobjdump says of a program for NVIDIA's GPUs, or None when Triton does not bring it."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(program.asm["cubin"])
        file.flush()
        return subprocess.run([tool, what, file.name], capture_output=True, text=True, check=True).stdout


def registers(program):
    """(registers, bytes of stack) of a program, or None."""
    said = dumped(program, "--dump-resource-usage")
    return said and tuple(int(re.search(rf"{what}:(\d+)", said).group(1)) for what in ("REG", "STACK"))


def check(arch, launches, products):
    """Compiles each launch; what multiplies holds the instruction `products`. Prints what each one takes."""
    for what, (kernel, arguments, options) in launches.items():
        for option in options[:1]:
            program = compiled(arch, kernel, arguments, option)
            assert program.metadata.shared <= SHARED[arch], f"{what} {option}: shared {program.metadata.shared}"
            multiplies = kernel.__name__ in PRODUCTS and arguments.get("COUT", 64) >= 48
            if isinstance(arch, str):
                assert not multiplies or re.search(products, program.asm["amdgcn"]), f"{what} {option}: no {products}"
                continue
            used = registers(program)
            print(f"sm_{arch} {kernel.__name__} {option} shared {program.metadata.shared} registers, stack {used}")
            assert used is None or used[1] <= 64, f"{what} {option}: spills {used[1]} bytes"
            if multiplies:
                assert re.search(products, program.asm["ptx"]), f"{what} {option}: no {products} in its PTX"


def only(launches, *names):
    return {what: found for what, found in launches.items() if found[0].__name__ in names}


WGMMA = r"wgmma\.mma_async\S*\.m64n\d+k16\.f32\.f16\.f16"
MMA = r"mma\.sync\S*m16n8k16\S*f32\.f16\.f16\.f32"


@pytest.mark.parametrize("op,kernels", [
    ("stem_3d", None), ("block", PRODUCTS[:2]), ("reconstruct", (*PRODUCTS[:3], "shifted_sum"))])
def test_hopper(recorded, op, kernels):
    launches = recorded(90, op)
    check(90, only(launches, *kernels) if kernels else launches, WGMMA)


def test_hopper_multiplies_256_pixels_by_64_channels(recorded):
    kernel, arguments, options = next(
        v for v in recorded(90, "block").values() if v[0].__name__ == "conv3x3" and v[1]["SUMS"] == "none")
    assert "m64n256k16" in compiled(90, kernel, arguments, options[0]).asm["ptx"]


@pytest.mark.parametrize("op", ("block", "reconstruct"))
def test_hopper_through_descriptors(recorded, op):
    """The copy engine brings pixels and weights to where the matrix unit reads them, and nothing else does."""
    for what, (kernel, arguments, options) in only(recorded(90, op, width=640), "conv3x3").items():
        boxed = [option for option in options if option["BOXES"]]
        assert bool(boxed) == (arguments["SUMS"] == "none"), what
        for option in boxed[:1]:
            check(90, {what: (kernel, arguments, [option])}, WGMMA)
            ptx = compiled(90, kernel, arguments, option).asm["ptx"]
            assert "cp.async.bulk.tensor.4d" in ptx and "cp.async.bulk.tensor.2d" in ptx
            assert "cp.async.cg" not in ptx


def test_first_layer_spends_few_instructions(recorded):
    """L1 has no loop. Gathered otherwise Triton 3.6 spent some 4000 instructions a pixel on it, Triton 3.9 2000."""
    (kernel, arguments, options), = only(recorded(90, "stem_3d"), "planes_convolution").values()
    spent = []
    for option in options:
        sass = dumped(compiled(90, kernel, arguments, option), "--dump-sass")
        if sass is None:
            pytest.skip("Triton brings no cuobjdump: instructions cannot be counted")
        threads = option["num_warps"] * 32 / option["BLOCK_P"]
        spent.append(len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s", sass, re.M)) * threads)
    print("instructions a pixel:", spent)
    assert 100 < min(spent) <= 1000


@pytest.mark.parametrize("adds,masked", [(0, False), (1, False), (2, False), (1, True)])
def test_walking(recorded, adds, masked):
    """All weights stay in shared memory and three rows are under way; nothing spills, whatever follows the sums."""
    def convolve(dtype):
        maps = [torch.zeros(1, 3, 640, 64, dtype=dtype) for _ in range(4)]
        weights, vector = convolution.pack_weights(torch.zeros(64, 64, 3, 3), dtype), torch.zeros(64)
        norm = convolution.Norm(vector, vector, vector, vector)
        convolution.convolve(maps[0], weights, scale=vector if masked else None, shift=vector, relu=True,
                             add=tuple(maps[1:1 + adds]), mask=maps[3] if masked else None,
                             mask_norm=norm if masked else None)

    (what, (kernel, arguments, options)), = only(recorded(90, convolve), "conv3x3").items()
    walking = [option for option in options if option["WALK"]]
    assert [option["BOXES"] for option in walking] == [False, True]
    for option in walking:
        program, pixels = compiled(90, kernel, arguments, option), option["BLOCK_P"]
        check(90, {what: (kernel, arguments, [option])}, WGMMA)
        counted = 9 * 64 * 128 + 3 * 3 * pixels * 128 + pixels * 64
        assert counted <= program.metadata.shared <= counted + 64, "not what tuning counts"
        ptx, used = program.asm["ptx"], registers(program)
        assert set(re.findall(r"wgmma\.mma_async\S*\.(m64n\d+k16)", ptx)) == {"m64n64k16"}
        assert len(re.findall(r"wgmma\.mma_async", ptx)) == 9 * 4, "a row's products stand there once"
        assert ("cp.async.bulk.tensor.4d" in ptx) == option["BOXES"] and ("cp.async.cg" in ptx) != option["BOXES"]
        assert used is None or used[1] == 0, f"spills {used[1]} bytes"


@pytest.mark.parametrize("arch", (80, 89))
def test_portable(recorded, arch):
    check(arch, only(recorded(arch, "block" if arch == 80 else "reconstruct"), *PRODUCTS[:3]), MMA)


def test_batch_norm(recorded):
    names = ("norm_apply", "norm_coefficients", "norm_backward_sums", "norm_backward_apply", "merge_statistics")
    check(89, only(recorded(89, "block"), *names), None)


def test_bfloat16(recorded):
    launches = only(recorded(90, "conv", torch.bfloat16), "conv3x3")
    check(90, launches, r"wgmma\.mma_async\S*\.m64n\d+k16\.f32\.bf16\.bf16")


def test_float32_is_exact_unless_fast(recorded):
    exact = only(recorded(80, "conv", torch.float32), "conv3x3")
    for kernel, arguments, options in exact.values():
        program = compiled(80, kernel, arguments, options[0])
        assert "mma" not in program.asm["ptx"] and "fma.rn.f32" in program.asm["ptx"]
        assert program.metadata.shared <= SHARED[89]
    check(89, only(recorded(89, "conv", torch.float32, "fast"), "conv3x3"), r"mma\.sync\S*tf32")


@pytest.mark.parametrize("op", ("stem_3d", "block", "reconstruct"))
def test_another_vendor(recorded, op):
    if "amd" not in triton.backends.backends:
        pytest.skip("this Triton is built without AMD's backend")
    check("gfx942", recorded("gfx942", op), "v_mfma_f32")
