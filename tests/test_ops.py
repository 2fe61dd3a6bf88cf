"""Each op on each backend: outputs, all gradients and running statistics against float64, and torch's rules."""

import pytest
import torch
from cases import (BACKENDS, OPS, SIZES, bf16_winograd_layers, call, clear_of_zero, eager, op_inputs, reference, run,
                   winograd_layers)
from tolerance import assert_close_as_eager

import dblr_fast
from dblr_fast import _cpu, ops
from dblr_fast.backends.planar import planar_stem, stem_gradients

CASES = [(op, n, *size) for op in OPS for size in SIZES for n in (1, 3)] + [
    (op, 1, 129, 131) for op in ("stem", "residual_block", "reconstruct")]

LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t,
    "view": lambda t: torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0],
    "transposed": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.dim() > 1 else t,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("op,n,h,w", CASES)
def test_parity(backend, training, op, n, h, w):
    if training and n * h * w < 6 and op in ("conv_bn_act", "conv_bn_act_plain", "residual_block"):
        n = 6  # two values normalise to +-1 whatever they are: all gradients cancel, nothing is left to judge
    inputs = clear_of_zero(op, op_inputs(op, n, h, w, seed=n * 1000 + h * 7 + w), training)
    exact = reference(op, inputs, training, torch.float64)
    plain = eager(op, inputs, training, backend)
    with dblr_fast.use_backend(backend):
        ours = run(ops, op, inputs, training, torch.float32)
    assert ours.keys() == exact.keys()
    for name in exact:
        assert_close_as_eager(f"{op} {name}", ours[name], plain[name], exact[name],
                              winograd=winograd_layers(backend, op, name))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_layouts(backend, layout, op):
    inputs = clear_of_zero(op, op_inputs(op, 2, 9, 11, seed=3), True)
    exact = reference(op, inputs, True, torch.float64)
    plain = eager(op, inputs, True, backend)
    with dblr_fast.use_backend(backend):
        ours = run(ops, op, inputs, True, torch.float32, layout=LAYOUTS[layout])
    for name in exact:
        assert_close_as_eager(f"{op} {name}", ours[name], plain[name], exact[name],
                              winograd=winograd_layers(backend, op, name))
    if ours["output"].shape[1] > 1:
        assert ours["output"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_no_input_gradient(backend, op):
    inputs = op_inputs(op, 2, 7, 6, seed=4)
    with dblr_fast.use_backend(backend):
        full = run(ops, op, inputs, True, torch.float32)
        part = run(ops, op, inputs, True, torch.float32, input_gradient=False)
    assert "gradient 0" in full and "gradient 0" not in part
    for name in part:
        assert torch.equal(part[name], full[name]), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_same_bits_every_run(backend, op):
    inputs = op_inputs(op, 2, 37, 53, seed=5)
    with dblr_fast.use_backend(backend):
        first = run(ops, op, inputs, True, torch.float32)
        second = run(ops, op, inputs, True, torch.float32)
    for name in first:
        assert torch.equal(first[name], second[name]), name


def check_gradients(backend, op, training):
    """torch.autograd.gradcheck of an op in float64, on fewer channels than Table I's: it takes long."""
    tensors, running = op_inputs(op, 2, 3, 4, seed=6, channels=2, wide=3, frames=3)
    if op.startswith("stem"):
        tensors = [tensors[0], tensors[1][:2], tensors[2][:2], tensors[3][:3, :2], tensors[4][:3]]
    leaves = [t.double().clone().requires_grad_() for t in tensors]

    def function(*leaves):
        return call(ops, op, leaves, [t.double().clone() for t in running], training)

    with dblr_fast.use_backend(backend):
        assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("op", OPS)
def test_gradcheck(backend, training, op):
    check_gradients(backend, op, training)


def raw_arguments(op, dtype=torch.float32, requires_grad=True):
    """(torch op, arguments) of the registered op behind each function."""
    tensors, running = op_inputs(op, 2, 5, 4, seed=7)
    leaves = [t.to(dtype).requires_grad_(requires_grad) for t in tensors]
    running = [t.to(dtype) for t in running]
    namespace = torch.ops.dblr_fast
    if op.startswith("stem"):
        return namespace.stem, tuple(leaves)
    if op.startswith("conv_bn_act"):
        residual = leaves[5] if len(leaves) > 5 else None
        return namespace.conv_bn_act, (*leaves[:5], *running, residual, True, True, 1e-5, True)
    if op == "residual_block":
        return namespace.residual_block, (
            *leaves[:5], *running[:2], *leaves[5:9], *running[2:], True, 1e-5, 2)
    return namespace.reconstruct, (*leaves, True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_opcheck(backend, channels_last, op):
    function, arguments = raw_arguments(op)
    if channels_last:
        arguments = tuple(
            a.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
            if isinstance(a, torch.Tensor) and a.dim() == 4 else a for a in arguments)
    torch.library.opcheck(function.default, (*arguments, backend, "exact"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_opcheck_of_backward_and_inference(backend, op):
    """The backward ops and the forward without gradients have right fakes too."""
    function, arguments = raw_arguments(op, requires_grad=False)
    if function is not torch.ops.dblr_fast.stem:
        arguments = (*arguments[:-1], False)
    torch.library.opcheck(function.default, (*arguments, backend, "exact"))
    with dblr_fast.use_backend(backend):
        seen = []

        class Spy(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                if func.namespace == "dblr_fast" and "backward" in func.__name__:
                    seen.append((func, args))
                return func(*args, **(kwargs or {}))

        tensors, running = op_inputs(op, 2, 5, 4, seed=8)
        y = call(ops, op, [t.requires_grad_() for t in tensors], running, True)
        with Spy():
            y.sum().backward()
    (backward, args), = seen
    torch.library.opcheck(backward, tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in args))


def reference_in_bf16(op, inputs):
    """Eager torch's under autocast. The stem's in 2-D: on CPUs with AMX torch 2.13's gradient of a 3-D convolution with
    one channel writes where it must not, and from some size on crashes or hangs."""
    with torch.autocast("cpu", torch.bfloat16):
        if op != "stem":
            return reference(op, inputs, True, torch.float32)
        (x, w1, b1, w2, b2), _ = inputs
        low = reference("stem_2d", ([x, *planar_stem(w1, b1, w2), b2], []), True, torch.float32)
    gradients = stem_gradients(*(low[f"gradient {i}"] for i in (1, 2, 3)), w1, w2)
    return low | {f"gradient {i}": g for i, g in enumerate(gradients, 1)}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op, size", [(op, (13, 9)) for op in OPS] + [("stem", (128, 128))])
def test_autocast(backend, op, size):
    """Under autocast an op computes in autocast's dtype; its parameters' gradients stay float32.

    The seed is one where no value near ReLU's threshold falls on the other side in one of the two only.
    """
    inputs = op_inputs(op, 2, *size, seed=6)
    exact = reference(op, inputs, True, torch.float64)
    low = reference_in_bf16(op, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        with dblr_fast.use_backend(backend):
            ours = run(ops, op, inputs, True, torch.float32)
    assert ours["output"].dtype == torch.bfloat16
    for name in exact:
        assert name == "output" or ours[name].dtype == torch.float32, name
        # Judged by bfloat16's ulp, in which the products were made.
        assert_close_as_eager(f"{op} {name}", ours[name].bfloat16(), low[name].bfloat16(), exact[name],
                              winograd=bf16_winograd_layers(backend, op, name))


def test_backward_runs_on_the_backend_of_forward(monkeypatch):
    used = []
    backend = dblr_fast.backends.get("torch")
    original = backend.reconstruct_backward
    monkeypatch.setattr(backend, "reconstruct_backward",
                        lambda *a: used.append("torch") or original(*a), raising=False)
    tensors, _ = op_inputs("reconstruct", 1, 4, 4, seed=10)
    with dblr_fast.use_backend("torch"):
        y = ops.reconstruct(*[t.requires_grad_() for t in tensors])
    y.sum().backward()
    assert used == ["torch"]


REFUSALS = [
    ("stem", lambda t, r: ([t[0][0], *t[1:]], r), r"wanted a 4-D input \(N, T, H, W\), got 3-D"),
    ("stem", lambda t, r: ([t[0][:, :4], *t[1:]], r), r"wanted w2 of shape"),
    ("stem", lambda t, r: ([t[0].double(), *t[1:]], r), r"wanted w1 in the input's dtype"),
    ("conv_bn_act", lambda t, r: ([t[0][:, :3], *t[1:]], r), r"wanted weight of shape \(32, 3, 3, 3\)"),
    ("conv_bn_act", lambda t, r: ([*t[:5], t[5][..., 1:]], r), r"wanted residual of shape"),
    ("conv_bn_act", lambda t, r: ([t[0].int(), *t[1:]], r), r"wanted a floating-point input"),
    ("conv_bn_act", lambda t, r: ([*t[:3], t[3][1:], *t[4:]], r), r"wanted gamma of shape \(32,\)"),
    ("conv_bn_act_plain", lambda t, r: ([t[0][:1, :, :1, :1], *t[1:]], r), r"more than one value a channel"),
    ("residual_block", lambda t, r: ([t[0][:, :, :0], *t[1:]], r), r"at least one element"),
    ("reconstruct", lambda t, r: ([*t[:5], t[5].repeat(2, 1, 1, 1), t[6]], r), r"wanted w3 of shape \(1,"),
]


@pytest.mark.parametrize("op,spoil,message", REFUSALS)
def test_refusals(op, spoil, message):
    tensors, running = spoil(*op_inputs(op, 2, 5, 4, seed=11))
    with pytest.raises(RuntimeError, match=message):
        call(ops, op, tensors, running, True)


@pytest.mark.parametrize("dtype,maps", [
    (torch.float64, 3), (torch.float32, 3), (torch.bfloat16, 2), (torch.float16, 1)])
def test_what_blocks_keep_on_a_cpu(dtype, maps):
    """For backward: the input and the convolutions' outputs; the first one's alone in bf16, and the input alone where
    the CPU computes in another type than the maps'."""
    if dtype == torch.bfloat16 and not _cpu.has_bf16():
        maps = 1
    tensors, running = op_inputs("residual_block", 1, 8, 8, seed=3)
    tensors, running = [t.to(dtype).requires_grad_() for t in tensors], [t.to(dtype) for t in running]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        with dblr_fast.use_backend("cpu"):
            y = call(ops, "residual_block", tensors, running, True)
    kept = [t for t in kept if t.dim() == 4 and t.shape[2:] == (8, 8)]
    assert y.requires_grad and len(kept) == maps and kept[0].data_ptr() == tensors[0].data_ptr()


def test_blocks_keep_less_when_asked():
    tensors, running = op_inputs("residual_block", 1, 8, 8, seed=3)
    first, second = (*tensors[1:5], *running[:2]), (*tensors[5:], *running[2:])
    x, kept = tensors[0].requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        with dblr_fast.use_backend("cpu"):
            ops.residual_block(x, first, second, training=True, keep=1)
    assert len([t for t in kept if t.dim() == 4 and t.shape[2:] == (8, 8)]) == 2
    with pytest.raises(RuntimeError, match="wanted keep to be 1 or 2, got 0"):
        ops.residual_block(x, first, second, training=True, keep=0)


def test_unknown_backend_and_precision():
    with pytest.raises(ValueError, match="backend must be one of auto, torch, cpu, cuda, triton; got 'metal'"):
        with dblr_fast.use_backend("metal"):
            pass
    with pytest.raises(ValueError, match="precision must be one of exact, fast, half, bf16; got 'best'"):
        with dblr_fast.precision("best"):
            pass
    tensors, _ = op_inputs("reconstruct", 1, 4, 4, seed=12)
    with dblr_fast.precision("half"), dblr_fast.use_backend("torch"), \
            pytest.raises(ValueError, match="backend 'torch' does not offer precision 'half'"):
        ops.reconstruct(*tensors)
    assert torch.isfinite(ops.reconstruct(*tensors)).all()
