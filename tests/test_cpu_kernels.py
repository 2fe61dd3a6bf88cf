"""The C++ kernels by themselves: every function of the CPU backend, on every instruction set that can run here."""

import copy
import os
import subprocess
import sys
import threading

import cpu_cases
import pytest
import torch
from cpu_cases import OPS, eager, inputs, ours, reference, winograd_layers
from tolerance import assert_close_as_eager

import dblr_fast
import python_ref
from dblr_fast import _cpu
from dblr_fast.backends.cpu import CpuBackend
from dblr_fast.backends.protocol import FoldedNetwork
from dblr_fast.engine import fold

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


@pytest.fixture(params=ISAS)
def isa(request):
    reason = ISAS[request.param]
    if reason:
        pytest.skip(f"{request.param}: {reason}")
    _cpu.set_isa(request.param)
    yield request.param
    _cpu.set_isa(BEST)


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
    compare(case, ours(BACKEND, case))
    compare(case, ours(BACKEND, case, save=False))


@pytest.mark.parametrize("case", [c for c in CASES if c[1] == "odd" and c[3] < 100], ids=name_of)
def test_float64(isa, case):
    compare(case, ours(BACKEND, case, torch.float64), torch.float64)
    compare(case, ours(BACKEND, case, torch.float64, save=False), torch.float64)


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
    for name in plain:
        assert torch.equal(plain[name], other[name]), name
    assert other["y"].is_contiguous(memory_format=torch.channels_last)


def test_expanded_gradient():
    case = ("conv_relu_residual", "odd", 2, 9, 11, True)
    tensors, running, _ = inputs(*case)
    y, mean, var, z = BACKEND.conv_bn_act(*tensors[:5], *running, None, True, True, 1e-5, True)
    one = torch.ones(())
    flat = BACKEND.conv_bn_act_backward(one.expand(y.shape), *tensors[:5], mean, var, z, True, True, 1e-5, True)
    full = BACKEND.conv_bn_act_backward(torch.ones(y.shape), *tensors[:5], mean, var, z, True, True, 1e-5, True)
    assert all(torch.equal(a, b) for a, b in zip(flat, full))


@pytest.mark.parametrize("op", OPS)
def test_same_bits_for_any_number_of_threads_and_every_run(isa, op):
    case = (op, "odd", 3, 37, 53, op in NORMED)
    runs = []
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        runs.append(ours(BACKEND, case))
    for other in runs[1:]:
        for name in runs[0]:
            assert torch.equal(runs[0][name], other[name]), name


@pytest.mark.parametrize("op", OPS)
def test_inputs_are_left_alone_and_input_gradient_is_optional(isa, op):
    case = (op, "odd", 2, 9, 11, op in NORMED)
    tensors, running, grad = inputs(*case)
    before = copy.deepcopy((tensors, running, grad))
    full, part = ours(BACKEND, case), ours(BACKEND, case, need_x=False)
    assert part.pop("dx") is None
    for name in part:
        assert torch.equal(part[name], full[name]), name
    for a, b in zip((*tensors, *running, grad), (*before[0], *before[1], before[2])):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
@pytest.mark.parametrize("op", OPS)
def test_narrow_types_compute_in_float32(op, dtype):
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


def network_of(blocks=2, tail_skip=True, variant="3d", frames=5):
    torch.manual_seed(0)
    model = python_ref.DBLRNet(frames=frames, variant=variant, tail_skip=tail_skip, blocks=blocks)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.05) if p.dim() > 1 else p.normal_(0, 0.1)
        for m in model.modules():
            if isinstance(m, torch.nn.BatchNorm2d):
                m.weight.uniform_(0.5, 1.5)
                m.running_mean.normal_(0, 0.1)
                m.running_var.uniform_(0.5, 1.5)
    return model.eval()


def folded(model) -> FoldedNetwork:
    halves = [half for block in model.blocks for half in (block.first, block.second)]
    model.body = lambda: [*halves, model.conv31, model.conv32]
    return fold(model)


@pytest.mark.parametrize("variant,frames,tail_skip,blocks", [
    ("3d", 5, True, 2), ("3d", 5, False, 2), ("3d", 7, True, 0), ("multi", 5, True, 0), ("single", 1, False, 0)])
@pytest.mark.parametrize("h,w", ((1, 1), (3, 5), (37, 53)))
@torch.no_grad()
def test_network(isa, variant, frames, tail_skip, blocks, h, w):
    model = network_of(blocks, tail_skip, variant, frames)
    network = BACKEND.network(folded(model), "exact", torch.device("cpu"))
    x = torch.rand(16 if h * w < 100 else 1, frames, h, w)  # enough values to judge by
    y = torch.cat([network(picture[None], (0, h, 0, w)) for picture in x])
    tiny = h * w < 100  # too few values to learn from them what eager torch errs
    assert_close_as_eager("network", y, model(x), copy.deepcopy(model).double()(x.double()), winograd=int(tiny))
    assert torch.equal(y[:1], network(LAYOUTS["transposed"](x[:1]), (0, h, 0, w)))


@torch.no_grad()
def test_network_on_a_part_agrees_with_the_whole(isa):
    """Up to rounding: Winograd's tiles on the part's border hold zeros for what lies outside and does not count."""
    model = network_of(1)
    network = BACKEND.network(folded(model), "exact", torch.device("cpu"))
    x = torch.rand(1, 5, 41, 67)
    eager, exact = model(x), copy.deepcopy(model).double()(x.double())
    for y0, y1, x0, x1 in ((0, 41, 0, 67), (0, 1, 0, 1), (40, 41, 66, 67), (7, 30, 20, 21), (13, 29, 9, 60)):
        parts = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            parts.append(network(x, (y0, y1, x0, x1)))
        assert torch.equal(*parts)
        here = (..., slice(y0, y1), slice(x0, x1))
        assert_close_as_eager("part", parts[0], eager[here], exact[here], exact.abs().max().item(), winograd=1)
    with pytest.raises(ValueError, match="within 41 x 67"):
        network(x, (0, 42, 0, 67))


@torch.no_grad()
def test_network_reuses_its_workspace_and_serves_threads_at_once():
    network = BACKEND.network(folded(network_of(0)), "exact", torch.device("cpu"))
    pictures = [torch.rand(1, 5, h, 40) for h in (40, 20, 30)]
    expected = [network(x, (0, x.shape[2], 0, 40)) for x in pictures]
    assert len(network._spare) == 1
    assert network.workspace_bytes(40, 40) > network._spare[0].numel() > 0
    assert network.workspace_bytes(4000, 40) == network.workspace_bytes(1000, 40), "rows are to be streamed"
    address, failures = network._spare[0].data_ptr(), []
    network(pictures[1], (0, 20, 0, 40))
    assert network._spare[0].data_ptr() == address

    def work(i):
        for _ in range(4):
            x = pictures[i]
            if not torch.equal(network(x, (0, x.shape[2], 0, 40)), expected[i]):
                failures.append(i)

    threads = [threading.Thread(target=work, args=(i % 3,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


@torch.no_grad()
def test_fast_errs_little_more(isa):
    """F(6x6): 2 to 4 times the error of eager torch is what the level promises (README, "Precision")."""
    model = network_of(2)
    x = torch.rand(1, 5, 37, 53)
    y = BACKEND.network(folded(model), "fast", torch.device("cpu"))(x, (0, 37, 0, 53))
    exact, eager = copy.deepcopy(model).double()(x.double()), model(x)
    assert (y - exact).norm() < 4 * (eager - exact).norm()


@torch.no_grad()
def test_half_keeps_maps_in_16_bits(isa):
    """Every layer adds a rounding to 11 bits, which the next may double; maps take half the memory of fast's."""
    model = network_of(2)
    half, fast = (BACKEND.network(folded(model), level, torch.device("cpu")) for level in ("half", "fast"))
    x = torch.rand(1, 5, 37, 53)
    y, exact = half(x, (0, 37, 0, 53)), copy.deepcopy(model).double()(x.double())
    limit = 2 * (2 * 2 + 7) ** 0.5 * 2 ** -11 * exact.norm()
    assert (y - exact).norm() < limit
    maps = [network._network.workspace_bytes(100, 200, (0, 100, 0, 200)) for network in (half, fast)]
    assert maps[0] < 0.65 * maps[1]  # the stem's inner map stays as it is
    part = half(x, (9, 30, 20, 41))
    assert (part - exact[:, :, 9:30, 20:41]).norm() < limit
    x[0, 2, 20, 20] = torch.nan
    assert half(x, (0, 37, 0, 53)).isnan().any()


@torch.no_grad()
def test_half_refuses_what_16_bits_cannot_hold(isa):
    model = network_of(1)
    model.blocks[0].second.bn.weight.mul_(1e6)
    network = BACKEND.network(folded(model), "half", torch.device("cpu"))
    with pytest.raises(ValueError, match="Layer 4 of 9 gave values beyond 65504.*take precision exact or fast"):
        network(torch.rand(1, 5, 11, 13), (0, 11, 0, 13))


@torch.no_grad()
def test_half_numbers_are_rounded_to_nearest(isa):
    """The identity network hands each pixel through all layers: what is a number in 16 bits stays as it is."""
    model = dblr_fast.DBLRNet(width=64, blocks=1, init="identity").eval()
    network = BACKEND.network(fold(model), "half", torch.device("cpu"))
    x = torch.linspace(-1, 3, 5 * 40 * 50).view(1, 5, 40, 50)
    x[0, 2, :20] = 10.0 ** torch.linspace(-9, 3, 20 * 50).view(20, 50)
    y, centre = network(x, (0, 40, 0, 50)), x[:, 2:3]
    kept = centre.clamp(min=0).half().float()  # L1 and L2 end in a ReLU
    assert ((y - kept).abs() <= 2 * (centre.abs() * 2 ** -10 + 2 ** -24) + 1e-6 * centre.abs().max()).all()


@torch.no_grad()
def test_bf16_makes_products_of_8_bits(isa):
    """Maps and both sides of every product are rounded to 8 bits; Winograd's transforms double what that errs."""
    model = network_of(2)
    if not _cpu.has_bf16():
        with pytest.raises(ValueError, match="no products in bf16.*take half, which is more exact, or fast"):
            BACKEND.network(folded(model), "bf16", torch.device("cpu"))
        return
    network = BACKEND.network(folded(model), "bf16", torch.device("cpu"))
    x = torch.rand(1, 5, 37, 53)
    y, exact = network(x, (0, 37, 0, 53)), copy.deepcopy(model).double()(x.double())
    limit = 4 * (2 * 2 + 7) ** 0.5 * 2 ** -8 * exact.norm()
    assert 2 ** -9 * exact.norm() < (y - exact).norm() < limit
    part = network(x, (9, 30, 20, 41))
    assert (part - exact[:, :, 9:30, 20:41]).norm() < limit
    assert torch.equal(network(x * 1e30, (0, 37, 0, 53)).isfinite(), torch.ones(1, 1, 37, 53, dtype=torch.bool))
    x[0, 2, 20, 20] = torch.nan
    assert network(x, (0, 37, 0, 53)).isnan().any()


def test_some_instruction_set_here_makes_bf16_products():
    """Where AVX2 runs, a model of AVX512-BF16 does."""
    if ISAS.get("avx512_model", "not built"):
        pytest.skip(f"avx512_model: {ISAS.get('avx512_model', 'not built')}")
    _cpu.set_isa("avx512_model")
    try:
        assert _cpu.has_bf16() and BACKEND.precisions()["bf16"] is None
    finally:
        _cpu.set_isa(BEST)


@torch.no_grad()
@pytest.mark.parametrize("level", ("half", "bf16"))
def test_widths_that_do_not_suit_winograd_stay_in_float32(level):
    isa = "avx512_model" if not ISAS.get("avx512_model", "not built") else BEST
    _cpu.set_isa(isa)
    try:
        if level == "bf16" and not _cpu.has_bf16():
            pytest.skip(f"{isa} makes no products in bf16")
        torch.manual_seed(0)
        model = dblr_fast.DBLRNet(width=12, blocks=1).eval()
        x = torch.rand(1, 5, 9, 11)
        levels = [BACKEND.network(fold(model), name, torch.device("cpu"))(x, (0, 9, 0, 11)) for name in ("exact", level)]
        torch.testing.assert_close(*levels)
    finally:
        _cpu.set_isa(BEST)


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
