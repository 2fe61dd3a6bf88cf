"""Cases of the CUDA kernels, and how results in 16 bits are judged: on the GPU and under the emulator alike."""

import functools

import cpu_cases
import torch
from cpu_cases import inputs
from test_cpu_kernels import NORMED, name_of, scale_of
from tolerance import ORDERS, assert_close_as_eager, ordered, turned


def cases_of(op, sizes):
    for widths, n, h, w in sizes:
        for training in (False, True) if op in NORMED else (False,):
            if not (training and n * h * w < 6):
                yield op, widths, n, h, w, training


@functools.cache
def low_references(case, dtype, gradients=True):
    """{name: (eager's results in the dtype, in each of ORDERS, and float64's)} for inputs of the dtype.

    gradients: on some CPUs with AMX eager torch's bf16 gradient of a larger 3-D convolution crashes.
    """
    tensors, running, grad = inputs(*case)
    op, training = case[0], case[-1]

    def run(compute, order=ORDERS[0]):
        leaves = [ordered(t.to(dtype), order).to(compute).requires_grad_() for t in tensors]
        statistics = [ordered(t.to(dtype), order).to(compute) for t in running]
        y = cpu_cases.call_reference(op, leaves, statistics, training)
        results = {"y": y.detach()}
        if gradients:
            found = torch.autograd.grad(y, leaves, ordered(grad.to(dtype), order).to(compute))
            results.update(zip(cpu_cases.gradient_names(op), found))
        if op in ("conv", "conv_relu_residual") and training:
            z = cpu_cases.conv(leaves[0], leaves[1]).detach().to(torch.promote_types(compute, torch.float32))
            results["var"], results["mean"] = torch.var_mean(z, (0, 2, 3), correction=0)
        return {name: turned(t, order[0]) for name, t in results.items()}

    exact = run(torch.float64)
    eager = [run(dtype, order) for order in ORDERS]
    return {name: ([r[name] for r in eager], exact[name]) for name in exact}


def compare_low(case, results, dtype):
    references = low_references(case, dtype, gradients=any(name.startswith("d") for name in results))
    for name, value in results.items():
        eager, exact = references[name]
        if case[-1] and name in ("db", "db1", "db2") and case[0] in NORMED:
            assert (value == 0).all(), name
            continue
        everything = {n: e for n, (_, e) in references.items()}
        assert value.dtype == (torch.float32 if name in ("mean", "var") else dtype), name
        assert_close_as_eager(f"{name_of(case)} {name}", value, eager, exact, scale_of(case, name, everything))
