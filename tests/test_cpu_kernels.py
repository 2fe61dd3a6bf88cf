"""The C++ kernels by themselves: every op of the CPU backend, on every instruction set that can run here."""

import copy
import os
import subprocess
import sys
import threading

import cpu_cases
import pytest
import torch
from cpu_cases import OPS, assert_same_bits, eager, inputs, ours, reference, winograd_layers
from tolerance import assert_close_as_eager

from dblr_fast import _cpu
from dblr_fast.backends.cpu import CpuBackend

BACKEND = CpuBackend()
ISAS = _cpu.isas()
BEST = _cpu.isa()
SIZES = ((1, 1), (1, 7), (3, 5), (37, 53))
NORMED = ("conv", "conv_relu_residual", "block")
CASES = [(op, widths, n, h, w, training)
         for op in OPS for widths in ("real", "odd") for n in (1, 3) for h, w in SIZES
         for training in ((False, True) if op in NORMED else (False,))
         # Two values a channel normalise to +-1 whatever they are: nothing is left to judge.
         if not (training and n * h * w < 6)
         if not (widths == "real" and n == 3 and h > 30)]
CASES += [(op, "odd", 1, 129, 131, op in NORMED) for op in OPS]


def name_of(case):
    op, widths, n, h, w, training = case
    return f"{op}-{widths}-{n}x{h}x{w}-{'train' if training else 'eval'}"


def used(name):
    if ISAS[name]:
        pytest.skip(f"{name}: {ISAS[name]}")
    _cpu.set_isa(name)
    yield name
    _cpu.set_isa(BEST)


# amx has the kernels of avx512 for all but what is in bf16 (see test_cpu_bf16.py), and so have their models.
@pytest.fixture(params=[name for name in ISAS if not name.startswith("amx")])
def isa(request):
    yield from used(request.param)


@pytest.fixture(params=ISAS)
def any_isa(request):
    yield from used(request.param)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Everything that torch allocates holds NaN until it is written."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    before, torch.utils.deterministic.fill_uninitialized_memory = \
        torch.utils.deterministic.fill_uninitialized_memory, True
    assert torch.empty(3).isnan().all()
    yield
    torch.utils.deterministic.fill_uninitialized_memory = before
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def scale_of(case, name, exact):
    """Natural size of results whose terms cancel: a sum of terms of about one, or a mean of wider values."""
    _, _, n, h, w, _ = case
    if name == "mean":
        return exact["var"].max().sqrt().item()
    return float(n * h * w) ** 0.5 if name in ("db3", "dbe", "dbe2", "db2") else None


def compare(case, results, dtype=torch.float32):
    plain, exact = eager(case, dtype), reference(case, torch.float64)
    for name, value in results.items():
        if case[-1] and name in ("db", "db1", "db2") and case[0] in NORMED:
            assert (value == 0).all(), f"{name}: batch norm removes what a bias adds, got {value.abs().max()}"
        else:
            assert_close_as_eager(f"{name_of(case)} {name}", value, plain[name], exact[name],
                                  scale_of(case, name, exact), winograd_layers(case, name))


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_float32(isa, case):
    for save in (0, 1, 2) if case[0] == "block" else (0, 2):
        compare(case, ours(BACKEND, case, save=save))


@pytest.mark.parametrize("case", [c for c in CASES if c[1] == "odd" and c[3] < 100], ids=name_of)
def test_float64(isa, case):
    for save in (0, 1, 2) if case[0] == "block" else (0, 2):
        compare(case, ours(BACKEND, case, torch.float64, save=save), torch.float64)


LAYOUTS = {
    "nchw": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "every other element": lambda t: torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0],
    "within a larger map": lambda t: torch.nn.functional.pad(t, (1, 2, 3, 1), value=torch.nan)[..., 3:-1, 1:-2],
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_any_strides_give_the_same_bits(isa, op, layout):
    case = (op, "odd", 3, 9, 11, op in NORMED)
    plain, other = ours(BACKEND, case), ours(BACKEND, case, layout=LAYOUTS[layout])
    assert_same_bits(plain, other)
    assert other["y"].is_contiguous(memory_format=torch.channels_last)


def test_expanded_gradient():
    case = ("conv_relu_residual", "odd", 2, 9, 11, True)
    tensors, running, _ = inputs(*case)
    y, mean, var, z = BACKEND.conv_bn_act(*tensors[:5], *running, None, True, True, 1e-5, True)
    one = torch.ones(())
    flat = BACKEND.conv_bn_act_backward(one.expand(y.shape), *tensors[:5], mean, var, z, True, True, 1e-5, True)
    full = BACKEND.conv_bn_act_backward(torch.ones(y.shape), *tensors[:5], mean, var, z, True, True, 1e-5, True)
    assert all(torch.equal(a, b) for a, b in zip(flat, full))


@pytest.mark.parametrize("widths", ("real", "odd"))
@pytest.mark.parametrize("op", OPS)
def test_same_bits_for_any_number_of_threads_and_every_run(isa, op, widths):
    case = (op, widths, 3, 37, 53, op in NORMED)
    runs = []
    for threads in (1, 2, 9, 1):  # 9: too many for both gradients of a block of tiles in turn
        torch.set_num_threads(threads)
        runs.append(ours(BACKEND, case))
    for other in runs[1:]:
        assert_same_bits(runs[0], other)


@pytest.mark.parametrize("op", OPS)
def test_inputs_are_left_alone_and_input_gradient_is_optional(isa, op):
    case = (op, "odd", 2, 9, 11, op in NORMED)
    tensors, running, grad = inputs(*case)
    before = copy.deepcopy((tensors, running, grad))
    full, part = ours(BACKEND, case), ours(BACKEND, case, need_x=False)
    assert part.pop("dx") is None
    assert_same_bits(part, full)
    for a, b in zip((*tensors, *running, grad), (*before[0], *before[1], before[2])):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
@pytest.mark.parametrize("op", OPS)
def test_narrow_types_compute_in_float32(isa, op, dtype):
    case = (op, "odd", 2, 9, 11, op in NORMED)
    tensors, running, grad = inputs(*case)
    for t in ours(BACKEND, case, dtype).values():
        assert t.isfinite().all()
    y = ours(BACKEND, case, dtype)["y"]
    wide = cpu_cases.call_reference(op, [t.to(dtype).float() for t in tensors],
                                    [t.to(dtype).float() for t in running], case[-1])
    exact = cpu_cases.call_reference(op, [t.to(dtype).double() for t in tensors],
                                     [t.to(dtype).double() for t in running], case[-1])
    assert y.dtype == dtype
    assert_close_as_eager(op, y, wide.to(dtype), exact)


def test_nan_passes_through():
    case = ("conv_relu_residual", "odd", 1, 5, 7, False)
    tensors, running, _ = inputs(*case)
    x = tensors[0].clone()
    x[0, 0, 2, 3] = torch.nan
    y = BACKEND.conv_bn_act(x, *tensors[1:5], *running, tensors[5], True, False, 1e-5, False)[0]
    assert y[:, :, 1:4, 2:5].isnan().all() and y[:, :, :, 5:].isfinite().all()


def test_calls_from_several_threads_at_once():
    case = ("block", "odd", 2, 37, 53, True)
    expected, failures = ours(BACKEND, case), []

    def work():
        for _ in range(5):
            results = ours(BACKEND, case)
            failures.extend(name for name in results if not torch.equal(results[name], expected[name]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_fingerprint_sees_every_value():
    tensors = [torch.rand(7, 13), torch.rand(3), torch.rand(64, 64, 3, 3)]
    first = BACKEND.fingerprint(tensors)
    assert BACKEND.fingerprint([t.clone() for t in tensors]) == first
    for t in tensors:
        for i in (0, t.numel() // 2, t.numel() - 1):
            kept = t.view(-1)[i].item()
            t.view(-1)[i] += 1e-6
            assert BACKEND.fingerprint(tensors) != first
            t.view(-1)[i] = kept
    assert BACKEND.fingerprint(tensors) == first
    assert BACKEND.fingerprint(tensors[::-1]) != first


def test_unavailable_says_why():
    assert BACKEND.unavailable() is None and BACKEND.unavailable(torch.device("cpu")) is None
    assert "on meta" in BACKEND.unavailable(torch.device("meta"))


def test_refusals_are_sentences():
    with pytest.raises(ValueError, match="must be one of portable"):
        _cpu.set_isa("mmx")
    x, w = torch.rand(1, 4, 5, 5), torch.rand(4, 4, 3, 3)
    v = torch.ones(4)
    with pytest.raises(ValueError, match=r"weight must be contiguous of shape \(4, 3, 3, 3\), got shape"):
        BACKEND.conv_bn_act(x[:, :3], w, v, v, v, v, v, None, False, False, 1e-5, False)


def run_python(code, **environment):
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True,
                          text=True)


@pytest.mark.parametrize("name", ISAS)
def test_environment_chooses_the_instruction_set(name):
    done = run_python("from dblr_fast.backends.cpu import CpuBackend as B; b = B(); "
                      "print(b.unavailable() or b._cpu.isa())", DBLR_FAST_ISA=name)
    assert done.returncode == 0, done.stderr
    expected = f"'{name}' was asked for, but {ISAS[name]}" if ISAS[name] else name
    assert expected in done.stdout


def test_runs_on_torchs_threads_and_in_a_forked_child():
    code = """
import os, torch
from dblr_fast.backends.cpu import CpuBackend
b = CpuBackend()
torch.set_num_threads(2)
assert b._cpu.has_openmp()
case = torch.rand(1, 8, 40, 40), torch.rand(8, 8, 3, 3), *[torch.rand(8) for _ in range(4)], torch.ones(8)
def run(): return b.conv_bn_act(*case, None, True, False, 1e-5, False)[0]
y = run()
child = os.fork()
if child == 0:
    same = torch.equal(run(), y)
    torch.set_num_threads(1)
    os._exit(0 if same and torch.equal(run(), y) else 1)
assert os.waitpid(child, 0)[1] == 0
b._cpu.use_openmp(0)
assert torch.equal(run(), y) and not b._cpu.has_openmp()
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
