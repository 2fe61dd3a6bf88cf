"""Cases of the CUDA kernels, and how results in 16 bits are judged: on the GPU and under the emulator alike."""

import functools

import cpu_cases
import torch
from cpu_cases import inputs
from test_cpu_kernels import NORMED, name_of, scale_of
from tolerance import assert_close_as_eager


def cases_of(op, sizes):
    for widths, n, h, w in sizes:
        for training in (False, True) if op in NORMED else (False,):
            if not (training and n * h * w < 6):
                yield op, widths, n, h, w, training


@functools.cache
def low_references(case, dtype):
    """{name: (eager's result in the dtype, float64's)} for inputs of the dtype; of two eager runs (see cpu_cases) the
    one that errs more."""
    tensors, running, grad = inputs(*case)
    op, training = case[0], case[-1]

    def run(compute, turn):
        leaves = [turn(t.to(dtype)).to(compute).requires_grad_() for t in tensors]
        y = cpu_cases.call_reference(op, leaves, [turn(t.to(dtype)).to(compute) for t in running], training)
        gradients = torch.autograd.grad(y, leaves, turn(grad.to(dtype)).to(compute))
        results = {"y": y.detach(), **dict(zip(cpu_cases.gradient_names(op), gradients))}
        if op in ("conv", "conv_relu_residual") and training:
            z = cpu_cases.conv(leaves[0], leaves[1]).detach().to(torch.promote_types(compute, torch.float32))
            results["var"], results["mean"] = torch.var_mean(z, (0, 2, 3), correction=0)
        return {name: turn(t) for name, t in results.items()}

    exact = run(torch.float64, lambda t: t)
    eager = [run(dtype, turn) for turn in (lambda t: t, cpu_cases.turned)]

    def error(t, name):
        return (t.double() - exact[name]).abs().max().item()

    return {name: (max((r[name] for r in eager), key=lambda t: error(t, name)), exact[name]) for name in exact}


def compare_low(case, results, dtype):
    for name, value in results.items():
        eager, exact = low_references(case, dtype)[name]
        if case[-1] and name in ("db", "db1", "db2") and case[0] in NORMED:
            assert (value == 0).all(), name
            continue
        everything = {n: e for n, (_, e) in low_references(case, dtype).items()}
        assert value.dtype == (torch.float32 if name in ("mean", "var") else dtype), name
        assert_close_as_eager(f"{name_of(case)} {name}", value, eager, exact, scale_of(case, name, everything))
