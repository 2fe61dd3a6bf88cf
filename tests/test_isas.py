"""Every instruction set's copy of the CPU kernels against float64, forced one after the other.

avx512_model is the AVX-512 source and blocking with its vectors lowered to narrower registers: it tests that
path's logic on a CPU without AVX-512.
"""

import os
import subprocess
import sys

import pytest
import torch
from cases import OPS, op_inputs, reference, run
from test_ops import check_gradients
from tolerance import assert_close_as_eager

import dblr_fast
from dblr_fast import ops

_cpu = pytest.importorskip("dblr_fast._cpu", reason="dblr_fast was built without its CPU kernels")


@pytest.fixture(params=list(_cpu.isas()))
def isa(request):
    reason = _cpu.isas()[request.param]
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    before = _cpu.isa()
    _cpu.set_isa(request.param)
    yield request.param
    _cpu.set_isa(before)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("n,h,w", [(6, 1, 1), (1, 1, 7), (3, 3, 5), (1, 37, 53)])
@pytest.mark.parametrize("op", OPS)
def test_parity(isa, training, n, h, w, op):
    inputs = op_inputs(op, n, h, w, seed=n * 1000 + h * 7 + w)
    exact = reference(op, inputs, training, torch.float64)
    eager = reference(op, inputs, training, torch.float32)
    with dblr_fast.use_backend("cpu"):
        ours = run(ops, op, inputs, training, torch.float32)
    for name in exact:
        assert_close_as_eager(f"{op} {name}", ours[name], eager[name], exact[name])


@pytest.mark.parametrize("op", OPS)
def test_gradcheck_in_float64(isa, op):
    check_gradients("cpu", op, training=True, fast_mode=True)


@pytest.mark.parametrize("op", OPS)
def test_same_bits_for_any_number_of_threads(isa, op):
    inputs = op_inputs(op, 2, 37, 53, seed=5)
    threads, runs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with dblr_fast.use_backend("cpu"):
                runs.append(run(ops, op, inputs, True, torch.float32))
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        for name in other:
            assert torch.equal(other[name], runs[0][name]), name


def in_a_process(code, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, **environment})


def test_environment_forces_an_isa():
    done = in_a_process("from dblr_fast import _cpu; print(_cpu.isa())", DBLR_FAST_ISA="portable")
    assert done.stdout.strip() == "portable", done.stderr


def test_unknown_isa_is_refused_with_the_reason():
    done = in_a_process("import dblr_fast; print(dblr_fast.backends()['cpu'])", DBLR_FAST_ISA="mmx")
    assert "must be one of portable" in done.stdout and "'mmx'" in done.stdout, done.stderr


def test_works_in_a_forked_child_and_beside_other_threads():
    """DataLoader workers fork after kernels have run; several Python threads may call at once."""
    code = """
import os, threading, torch, dblr_fast
from dblr_fast import Engine, DBLRNet
model = DBLRNet(width=8, blocks=2).eval()
x = torch.rand(1, 5, 30, 40)
wanted = Engine(model)(x)
found = []
threads = [threading.Thread(target=lambda: found.append(Engine(model)(x))) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
assert len(found) == 4 and all(torch.equal(f, wanted) for f in found)
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    os._exit(0 if torch.equal(Engine(model)(x), wanted) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("right")
"""
    done = in_a_process(code)
    assert done.stdout.strip() == "right", done.stderr
