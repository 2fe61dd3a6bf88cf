"""Ops with maps and products in bf16, by AMX or Winograd's transforms and on models of both: outputs and all gradients
against eager torch in bf16."""

import copy

import pytest
import torch
from cpu_cases import OPS, assert_same_bits, bf16_winograd_layers, inputs, ours, reference
from test_cpu_kernels import (BACKEND, CASES, ISAS, LAYOUTS, NORMED, name_of, poisoned_memory,  # noqa: F401
                              threads_as_before, used)
from tolerance import ORDERS, assert_close_as_eager

import dblr_fast
import python_ref
from dblr_fast import _cpu

# The stem in 3-D becomes the one in 2-D in Python, and torch's own gradient of it in bf16 is broken: see planar.py.
BF16_OPS = [op for op in OPS if op != "stem_3d"]
BF16_CASES = [case for case in CASES if case[0] in BF16_OPS]
# Wider and higher than a task, and than a band of the weight gradient.
BF16_CASES += [(op, "odd", 1, h, w, op in NORMED) for op in BF16_OPS for h, w in ((11, 300), (130, 3))]


@pytest.fixture(params=[name for name in ISAS if name.startswith(("amx", "avx512"))])
def isa(request):
    for name in used(request.param):
        if not _cpu.has_bf16():
            pytest.skip(f"{name}: this CPU lacks AVX512-BF16")
        yield name


@pytest.mark.parametrize("case", BF16_CASES, ids=name_of)
def test_errs_as_eager_bf16(isa, case):
    exact = reference(case, torch.float64)
    eager = [reference(case, torch.bfloat16, order) for order in ORDERS]
    results, output = ours(BACKEND, case, torch.bfloat16), ours(BACKEND, case, torch.bfloat16, save=False)
    assert results["y"].dtype == torch.bfloat16 and output["y"].dtype == torch.bfloat16
    for name, value in (*results.items(), *output.items()):
        assert_close_as_eager(f"{name_of(case)} {name}", value.bfloat16(), [e[name] for e in eager], exact[name],
                              winograd=bf16_winograd_layers(case, name))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", BF16_OPS)
def test_any_strides_give_the_same_bits(isa, op, layout):
    case = (op, "odd", 3, 9, 11, op in NORMED)
    plain = ours(BACKEND, case, torch.bfloat16)
    other = ours(BACKEND, case, torch.bfloat16, layout=LAYOUTS[layout])
    assert_same_bits(plain, other)
    assert other["y"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("widths", ("real", "odd"))
@pytest.mark.parametrize("op", BF16_OPS)
def test_same_bits_for_any_number_of_threads_and_every_run(isa, op, widths):
    case = (op, widths, 3, 37, 53, op in NORMED)
    runs = []
    for threads in (1, 3, 9, 1):  # 9: too many for both gradients of a block of tiles in turn
        torch.set_num_threads(threads)
        runs.append(ours(BACKEND, case, torch.bfloat16))
    for other in runs[1:]:
        assert_same_bits(runs[0], other)


@pytest.mark.parametrize("op", BF16_OPS)
def test_input_gradient_is_optional(isa, op):
    case = (op, "odd", 2, 9, 11, op in NORMED)
    full, part = ours(BACKEND, case, torch.bfloat16), ours(BACKEND, case, torch.bfloat16, need_x=False)
    assert part.pop("dx") is None
    assert_same_bits(part, full)


def test_nan_passes_through(isa):
    tensors, running, _ = ([t.bfloat16() for t in part] if isinstance(part, tuple) else part
                           for part in inputs("conv_relu_residual", "real", 1, 5, 37, False))
    tensors[0][0, 0, 2, 3] = torch.nan
    y = BACKEND.conv_bn_act(*tensors[:5], *running, tensors[5], True, False, 1e-5, False)[0]
    reached = 5 if isa.startswith("amx") else 8  # a neighbour away, or in the same tile of F(8x8)
    assert y[:, :, 1:4, 2:5].isnan().all() and y[:, :, :, reached:].isfinite().all()


@pytest.mark.parametrize("amx", [name for name in ISAS if name.startswith("amx")])
def test_other_types_are_as_without_amx(amx):
    """float32 and float16 compute in float32 where there is AMX too."""
    case = ("block", "real", 1, 9, 11, True)
    for _ in used(amx):
        for dtype in (torch.float32, torch.float16):
            with_amx = ours(BACKEND, case, dtype)
            _cpu.set_isa("avx512" if amx == "amx" else "avx512_model")
            without = ours(BACKEND, case, dtype)
            _cpu.set_isa(amx)
            assert_same_bits(without, with_amx)


def gradients_in_bf16(model, x, dtype):
    """All gradients of a loss, one after the other; under autocast, or in dtype."""
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        y = model(x)
    torch.nn.functional.mse_loss(y.to(x.dtype), x[:, 2:3]).backward()
    return y.detach().double(), torch.cat([p.grad.double().flatten() for p in model.parameters()])


def test_a_network_trains_as_exactly_as_eager_bf16(isa):
    """Through the whole network, forward and backward, products in bf16 err no more than twice as much as eager torch's."""
    torch.manual_seed(3)
    specification = python_ref.DBLRNet(blocks=4, variant="multi").train()  # 2-D: see BF16_OPS
    model = dblr_fast.DBLRNet(blocks=4, variant="multi").train()
    model.load_state_dict(specification.state_dict())
    x = torch.rand(2, 5, 26, 31)
    exact = gradients_in_bf16(copy.deepcopy(specification).double(), x.double(), torch.float64)
    eager = gradients_in_bf16(specification, x, torch.bfloat16)
    mine = gradients_in_bf16(model, x, torch.bfloat16)
    for e, m, r in zip(eager, mine, exact):
        assert (m - r).norm() <= 2 * (e - r).norm()
