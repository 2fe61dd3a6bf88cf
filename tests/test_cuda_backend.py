"""The cuda backend as it is, over the CUDA library run by the emulator: tensors are the CPU's, nothing else differs."""

import copy

import cpu_cases
import emulator
import pytest
import torch
from cpu_cases import OPS, inputs, ours
from cuda_cases import cases_of, compare_low
from test_cpu_kernels import NORMED, compare, name_of
from test_cpu_network import folded, network_of
from test_model import SMALL, pair
from tolerance import assert_close_as_eager, outputs

import dblr_fast
from dblr_fast import backends
from dblr_fast.backends.cuda import CudaBackend
from dblr_fast.engine import Engine

CPU = torch.device("cpu")
LOW = (torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def backend():
    return CudaBackend(module=emulator.load("_cuda_emulated"), emulated=True)


@pytest.fixture
def chosen(backend, monkeypatch):
    """Ops, models and engines on CPU tensors run on the emulated backend."""
    monkeypatch.setitem(backends._instances, "cuda", backend)
    with dblr_fast.use_backend("cuda"):
        yield backend


@pytest.fixture
def portable(monkeypatch):
    monkeypatch.setenv("DBLR_FAST_SM90", "off")


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Everything that torch allocates holds NaN until it is written."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    before, torch.utils.deterministic.fill_uninitialized_memory = \
        torch.utils.deterministic.fill_uninitialized_memory, True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = before
    torch.use_deterministic_algorithms(False)


SIZES = (("odd", 1, 1, 1), ("odd", 3, 1, 7), ("odd", 2, 9, 11), ("odd", 1, 37, 53), ("real", 2, 3, 5))
FLOAT = [case for op in OPS for case in cases_of(op, SIZES)]


@pytest.mark.parametrize("case", FLOAT, ids=name_of)
def test_float32(backend, case):
    compare(case, ours(backend, case))
    if case[0] in NORMED or case[0] == "reconstruct" and case[1] == "odd":  # others run the same without
        compare(case, ours(backend, case, save=False))


LOW_SIZES = (("odd", 1, 1, 1), ("odd", 3, 3, 5), ("real", 2, 3, 5))


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("case", [case for op in OPS for case in cases_of(op, LOW_SIZES)], ids=name_of)
def test_float16_and_bfloat16(backend, case, dtype):
    compare_low(case, ours(backend, case, dtype), dtype)
    if case[0] in NORMED or case[0] == "reconstruct" and case[1] == "odd":
        compare_low(case, ours(backend, case, dtype, save=False), dtype)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("case", [c for op in OPS for c in cases_of(op, LOW_SIZES) if c[1] == "real"], ids=name_of)
def test_portable_kernels_where_those_of_sm90_are_to_be_had(backend, portable, case, dtype):
    compare_low(case, ours(backend, case, dtype), dtype)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_float16_and_bfloat16_outputs_of_larger_pictures(backend, op, dtype):
    case = (op, "odd", 1, 37, 53, op in NORMED)
    results = ours(backend, case, dtype, save=False)
    compare_low(case, results, dtype)


def launched(backend, run):
    """Names of the kernels that `run` launches, each refused once. None of them runs."""
    names = []
    backend.module.capture_begin()
    try:
        while True:
            backend.module.refuse_after(len(names))
            try:
                run()
            except RuntimeError as error:
                names.append(str(error).split(":")[0])
            else:
                return names
    finally:
        backend.module.refuse_after(-1)
        backend.module.capture_end()


def test_weight_gradients_by_sm90_kernels(backend, monkeypatch):
    """A source that is normalised on the way becomes a map first."""
    for op, count in (("conv", 1), ("block", 2), ("reconstruct", 2)):
        names = launched(backend, lambda: ours(backend, (op, "real", 1, 2, 3, op in NORMED), torch.float16))
        assert names.count("weight_gradient_sm90") == count and "weight_gradient" not in names, (op, names)
        if op == "block":
            assert names[names.index("weight_gradient_sm90") - 1] == "norm_apply"
    names = launched(backend, lambda: ours(backend, ("block", "odd", 1, 2, 3, True), torch.float16))
    assert names.count("weight_gradient") == 2 and "weight_gradient_sm90" not in names
    monkeypatch.setenv("DBLR_FAST_SM90", "off")
    names = launched(backend, lambda: ours(backend, ("block", "real", 1, 2, 3, True), torch.float16))
    assert names.count("weight_gradient") == 2 and "weight_gradient_sm90" not in names


def test_statistics_are_merged_and_made_into_coefficients_in_one_launch(backend):
    """Each layer's coefficients are computed again by the backward pass alone."""
    names = launched(backend, lambda: ours(backend, ("block", "real", 1, 2, 3, True), torch.float16))
    backward = names.index("norm_backward_sums")
    assert names[:backward].count("merge_statistics") == 2, names
    assert names.count("norm_coefficients") == 2 and names[backward - 2:backward] == ["norm_coefficients"] * 2, names


@pytest.mark.parametrize("op", ("stem_3d", "stem_2d"))
def test_second_layer_by_sm90_kernels(backend, op):
    """L1's map is given the channels that they take, forward and backward; L1's own gradients stay portable."""
    case = op, "real", 2, 3, 5, False
    names = launched(backend, lambda: ours(backend, case, torch.float16))
    assert names[:4] == ["pack_stem", "stem", "pack_weights_sm90", "conv3x3_sm90"], names
    counts = {name: names.count(name) for name in ("stem", "conv3x3_sm90", "conv3x3", "weight_gradient_sm90")}
    assert counts == {"stem": 2, "conv3x3_sm90": 2, "conv3x3": 1, "weight_gradient_sm90": 1}, names
    compare_low(case, ours(backend, case, torch.float16), torch.float16)


LAYOUTS = {
    "nchw": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "every other element": lambda t: torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0],
    "within a larger map": lambda t: torch.nn.functional.pad(t, (1, 2, 3, 1), value=torch.nan)[..., 3:-1, 1:-2],
}


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
@pytest.mark.parametrize("op", OPS)
def test_any_strides_give_the_same_bits_on_every_run(backend, op, dtype):
    case = (op, "odd", 2, 3, 11, op in NORMED)
    plain = ours(backend, case, dtype)
    for layout in LAYOUTS.values():
        other = ours(backend, case, dtype, layout=layout)
        for name in plain:
            assert torch.equal(plain[name], other[name]), name
        assert other["y"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("op", OPS)
def test_inputs_are_left_alone_and_input_gradient_is_optional(backend, op):
    case = (op, "odd", 2, 3, 5, op in NORMED)
    tensors, running, grad = inputs(*case)
    before = copy.deepcopy((tensors, running, grad))
    full, part = ours(backend, case), ours(backend, case, need_x=False)
    assert part.pop("dx") is None
    for name in part:
        assert torch.equal(part[name], full[name]), name
    for a, b in zip((*tensors, *running, grad), (*before[0], *before[1], before[2])):
        assert torch.equal(a, b)


@pytest.mark.parametrize("level,dtype", [("half", torch.float16), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("op", OPS)
def test_levels_convert_maps_on_the_way_in_and_out(backend, op, level, dtype):
    """float32 tensors at a 16-bit level give what 16-bit maps give, but for parameters that stay float32."""
    case = (op, "odd", 2, 3, 5, op in NORMED)
    tensors, running, _ = inputs(*case)
    results = ours(backend.at(level), case)
    assert all(t.dtype == torch.float32 for t in results.values())
    wide = cpu_cases.call_reference(op, [t.to(dtype) for t in tensors], [t.to(dtype) for t in running], case[-1])
    exact = cpu_cases.call_reference(op, [t.double() for t in tensors], [t.double() for t in running], case[-1])
    assert_close_as_eager(op, results["y"].to(dtype), wide, exact)
    assert backend.at("exact") is backend and backend.at(level).at("exact").level == "exact"


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_float32_parameters_beside_16_bit_maps(chosen, dtype):
    """They are rounded as they are taken, so that values of few bits give the same bits; gradients come as float32."""
    low = dblr_fast.DBLRNet(blocks=1, width=8).to(dtype).train()
    wide, x = copy.deepcopy(low).float(), torch.rand(2, 5, 5, 7).to(dtype)
    results = [model(x) for model in (low, wide)]
    assert results[1].dtype == dtype and torch.equal(*results)
    for y in results:
        y.backward(torch.ones_like(y))
    for (name, a), b in zip(low.named_parameters(), wide.parameters()):
        assert b.grad.dtype == torch.float32 and torch.equal(a.grad, b.grad.to(dtype)), name


def test_fast_multiplies_in_tf32(backend):
    case = ("conv", "odd", 2, 9, 11, False)
    exact, fast = ours(backend, case)["y"], ours(backend.at("fast"), case)["y"]
    difference = (exact - fast).norm() / exact.norm()
    assert 0 < difference < 2**-10  # TF32 rounds both factors to 11 bits


# ---- the network ----

def networks(blocks, **options):
    model = network_of(blocks, **options)
    return model, folded(model)


class EachLayerRounded(torch.nn.Module):
    """A folded network as eager torch runs it in a 16-bit type: every layer's result is of that type."""

    def __init__(self, fold, dtype):
        super().__init__()
        from dblr_fast.backends.torch_backend import TorchNetwork

        self.network = TorchNetwork(fold, "exact", CPU)
        self.network.stem, self.network.tail = ([t.to(dtype) for t in part] for part in (fold.stem, fold.tail))
        self.network.body = [[t.to(dtype) for t in part] for part in fold.body]
        self.dtype = dtype

    def forward(self, x):
        return self.network._run(x.to(self.dtype))


@pytest.mark.parametrize("blocks,h,w", [(2, 24, 20), (14, 5, 7)])
@pytest.mark.parametrize("precision", ("exact", "half", "bf16"))
@torch.no_grad()
def test_network(backend, portable, precision, blocks, h, w):
    model, fold = networks(blocks)
    network = backend.network(fold, precision, CPU)
    x = torch.rand(1, 5, h, w)
    y = network(x, (0, h, 0, w))
    assert y.dtype == torch.float32 and y.shape == (1, 1, h, w)
    exact = copy.deepcopy(model).double()(x.double())
    if precision == "exact":
        assert_close_as_eager("network", y, outputs(model, x), exact)
    else:
        dtype = torch.float16 if precision == "half" else torch.bfloat16
        assert_close_as_eager("network", y.to(dtype), EachLayerRounded(fold, dtype)(x), exact)
    if blocks > 2:
        transposed = x.transpose(2, 3).contiguous().transpose(2, 3)
        assert torch.equal(network(transposed, (2, h, 1, w - 2)), y[:, :, 2:, 1:w - 2])


@pytest.mark.parametrize("variant,frames,tail_skip,blocks", [
    ("3d", 5, False, 1), ("3d", 7, True, 0), ("multi", 5, True, 0), ("single", 1, False, 0)])
@torch.no_grad()
def test_network_variants(backend, variant, frames, tail_skip, blocks):
    model, fold = networks(blocks, variant=variant, frames=frames, tail_skip=tail_skip)
    x = torch.rand(4, frames, 3, 5)
    y = torch.cat([backend.network(fold, "exact", CPU)(picture[None], (0, 3, 0, 5)) for picture in x])
    assert_close_as_eager("network", y, outputs(model, x), copy.deepcopy(model).double()(x.double()))


@pytest.mark.parametrize("frames", (5, 7))  # L1's map of 48 or 80 channels is written with 64 or 128
@torch.no_grad()
def test_sm90_kernels_give_the_networks_result(backend, monkeypatch, frames):
    _, fold = networks(0, frames=frames)
    x = torch.rand(1, frames, 5, 18)

    def network(precision):
        network = backend.network(fold, precision, CPU)
        return network(x, (0, 5, 0, 18)), network._native.packed_bytes()

    hopper, hopper_bytes = network("half")
    assert backend.uses_sm90(CPU) and "sm_90a kernels" in backend.kernels(CPU)
    monkeypatch.setenv("DBLR_FAST_SM90", "off")
    assert not backend.uses_sm90(CPU) and "portable" in backend.kernels(CPU)
    portable, portable_bytes = network("half")
    monkeypatch.delenv("DBLR_FAST_SM90")
    chunks = (1 if frames == 5 else 2) + 2 + 4 + 16  # of L2, the body, L33 and L34
    assert hopper_bytes - portable_bytes == chunks * 9 * 64 * 64 * 2
    assert_close_as_eager("sm_90a", hopper.half(), portable.half(), network("exact")[0].double())
    backend.module.set_device(8, 0)
    try:
        assert not backend.uses_sm90(CPU) and "9.0 alone" in backend.kernels(CPU)
    finally:
        backend.module.set_device()


@torch.no_grad()
def test_network_reuses_its_workspace(backend):
    network = backend.network(networks(0)[1], "half", CPU)
    assert network.workspace_bytes(40, 40) == 656 * 1600
    wide = backend.network(networks(0, frames=11)[1], "half", CPU)  # L1's 144 channels, as 192, in the last map
    assert wide.workspace_bytes(40, 40) == (656 - 512 + 2 * 128 + 2 * 192) * 1600
    pictures = [torch.rand(1, 5, h, 11) for h in (8, 5)]
    expected = [network(x, (0, x.shape[2], 0, 11)) for x in pictures]
    address = network._workspace.data_ptr()
    network(torch.full((1, 5, 8, 11), torch.nan), (0, 8, 0, 11))
    assert all(torch.equal(network(x, (0, x.shape[2], 0, 11)), y) for x, y in zip(pictures, expected))
    assert network._workspace.data_ptr() == address
    with pytest.raises(ValueError, match="within 8 x 11"):
        network(pictures[0], (0, 13, 0, 11))


# ---- ops, models and the engine over it ----

def test_training_step_of_a_model(chosen):
    model, specification = pair(**SMALL)
    x, target = torch.rand(2, 5, 6, 5), torch.rand(2, 1, 6, 5)

    def step(module, dtype):
        module = copy.deepcopy(module).to(dtype).train()
        loss = torch.nn.functional.mse_loss(module(x.to(dtype)), target.to(dtype))
        loss.backward()
        named = {name: p.grad for name, p in module.named_parameters()}
        return named | {name: b for name, b in module.named_buffers() if "running" in name}

    results = step(model, torch.float32)
    eager, exact = step(specification, torch.float32), step(specification, torch.float64)
    for name, value in results.items():
        if name.endswith("conv.bias") and "blocks" in name or name in ("conv31.conv.bias", "conv32.conv.bias"):
            assert (value == 0).all(), name
        else:
            # Gradients of one tensor after a dozen layers: judged on the scale of the largest of its kind.
            kind = name.rsplit(".", 1)[-1]
            scale = max(e.abs().max().item() for n, e in exact.items() if n.endswith(kind))
            assert_close_as_eager(name, value, eager[name], exact[name], scale)


def test_autocast_and_half_modules_run(chosen):
    model, _ = pair(**SMALL)
    x = torch.rand(2, 5, 6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = model.train()(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all()
               for p in model.parameters())
    half = copy.deepcopy(model).half().eval()
    assert half(x.half()).dtype == torch.float16


@torch.no_grad()
def test_engine_takes_smaller_tiles_when_memory_runs_out(chosen, monkeypatch):
    model, _ = pair(width=16, blocks=1)
    x = torch.rand(1, 5, 44, 60)
    engine = Engine(model, precision="exact")
    assert engine.backend == "cuda"
    whole = engine(x)
    limit, asked = engine._network.workspace_bytes(44, 50), []

    def scarce(size, device, allocate=CudaBackend.allocate):
        asked.append(size)
        if size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return allocate(chosen, size, device)

    poor, none = (Engine(model, precision="exact") for _ in range(2))
    for engine in (poor, none):
        engine(x[..., :2, :2])  # weights are packed
    monkeypatch.setattr(chosen, "allocate", scarce)
    torch.testing.assert_close(poor(x), whole)
    assert max(asked) > limit
    limit = 1000
    with pytest.raises(MemoryError, match="memory ran out; free memory"):
        none(x)


# ---- refusals ----

def test_float64_is_refused_by_name_and_left_to_torch_otherwise(chosen, monkeypatch):
    x, w, v = torch.rand(1, 4, 5, 5).double(), torch.rand(4, 4, 3, 3).double(), torch.ones(4).double()
    arguments = x, w, v, v, v, v, v
    with pytest.raises(ValueError, match="computes in float32, float16, bfloat16, not in float64; convert it"):
        dblr_fast.ops.conv_bn_act(*arguments)
    with pytest.raises(RuntimeError, match="takes float32, float16 and bfloat16, got torch.float64"):
        chosen.conv_bn_act(*arguments, None, False, False, 1e-5, False)
    monkeypatch.setitem(backends.PREFERENCE, "cpu", ("cuda", "torch"))
    assert backends.select(CPU, dtype=torch.float64).name == "torch"
    assert backends.select(CPU, dtype=torch.float16).name == "cuda"


def test_unavailable_says_why(backend, monkeypatch):
    assert backend.unavailable() is None and backend.unavailable(CPU) is None
    assert "on meta" in backend.unavailable(torch.device("meta"))
    product = CudaBackend(module=backend.module)
    assert "on cpu" in product.unavailable(CPU)
    product.module = type("NoDriver", (), {"devices": staticmethod(lambda: ([], "there is no NVIDIA driver"))})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert product.unavailable().startswith("there is no NVIDIA driver; ")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in product.unavailable()
    product._reason = "dblr_fast was built without its CUDA library"
    assert product.unavailable() == product._reason
    with pytest.raises(ValueError, match="does not offer precision 'best'"):
        backend.network(networks(0)[1], "best", CPU)


def test_capability_and_self_check(backend, monkeypatch):
    product = CudaBackend(module=type("Module", (), {"self_check": staticmethod(lambda i: f"wrong on {i}")}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: (7, 5) if i == 0 else (8, 6))
    assert "8.0 or later, cuda:0 has 7.5" in product.unavailable(torch.device("cuda", 0))
    assert "test kernel failed on cuda:1 (wrong on 1)" in product.unavailable(torch.device("cuda:1"))


def test_launchers_refuse_with_a_sentence(backend):
    backend.module.set_device(7, 5)
    try:
        with pytest.raises(RuntimeError, match="8.0 or later, this one has 7.5"):
            ours(backend, ("conv", "odd", 1, 3, 5, False))
    finally:
        backend.module.set_device()
