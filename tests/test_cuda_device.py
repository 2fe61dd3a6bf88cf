"""The cuda backend on a real GPU: parity in every type, graphs, streams, memory, and both families of kernels."""

import copy

import pytest
import torch
from cpu_cases import OPS, inputs, ours
from cuda_cases import cases_of, compare_low
from test_cpu_kernels import NORMED, compare, name_of
from test_cpu_network import folded, network_of
from tolerance import assert_close_as_eager
from training_cases import Windows, same_tree, small

from dblr_fast import backends
from dblr_fast.backends.cuda import CudaBackend
from dblr_fast.engine import Engine
from dblr_fast.training.ranks import Ranks
from dblr_fast.training.step import Step

REASON = ("torch finds no GPU" if not torch.cuda.is_available()
          else backends.get("cuda").unavailable(torch.device("cuda", 0)))
if REASON is not None:
    pytest.skip(f"no CUDA kernels to test here: {REASON}", allow_module_level=True)

GPU = torch.device("cuda", 0)
TYPES = (torch.float32, torch.float16, torch.bfloat16)
SIZES = (("odd", 1, 1, 1), ("odd", 3, 1, 7), ("real", 3, 3, 5), ("real", 1, 37, 53), ("odd", 1, 129, 131))


class OnGpu:
    """The backend for tests that hold tensors on the CPU: moves what goes in and what comes out."""

    def __init__(self, backend):
        self.backend = backend

    def __getattr__(self, name):
        def call(*arguments):
            moved = [t.to(GPU) if isinstance(t, torch.Tensor) else t for t in arguments]
            results = getattr(self.backend, name)(*moved)
            if isinstance(results, torch.Tensor):
                return results.cpu()
            return tuple(None if t is None else t.cpu() for t in results)
        return call


@pytest.fixture
def backend():
    return OnGpu(backends.get("cuda"))


@pytest.fixture(autouse=True)
def poisoned_memory(request):
    """Everything that torch allocates holds NaN until it is written."""
    if "training_replayed" in request.node.name:  # eager torch's own convolutions differ then
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("case", [case for op in OPS for case in cases_of(op, SIZES)], ids=name_of)
def test_float32(backend, case):
    compare(case, ours(backend, case))
    compare(case, ours(backend, case, save=False))


@pytest.mark.parametrize("dtype", TYPES[1:], ids=str)
@pytest.mark.parametrize("case", [case for op in OPS for case in cases_of(op, SIZES[:3])], ids=name_of)
def test_float16_and_bfloat16(backend, case, dtype):
    compare_low(case, ours(backend, case, dtype), dtype)
    compare_low(case, ours(backend, case, dtype, save=False), dtype)


@pytest.mark.skipif(torch.cuda.get_device_capability(GPU) != (9, 0), reason="this GPU runs the portable kernels anyway")
@pytest.mark.parametrize("dtype", TYPES[1:], ids=str)
@pytest.mark.parametrize("case", [c for op in OPS for c in cases_of(op, SIZES[:3]) if c[1] == "real"], ids=name_of)
def test_portable_kernels_in_16_bits(monkeypatch, backend, case, dtype):
    monkeypatch.setenv("DBLR_FAST_SM90", "off")
    compare_low(case, ours(backend, case, dtype), dtype)
    compare_low(case, ours(backend, case, dtype, save=False), dtype)


@pytest.mark.parametrize("dtype", TYPES[1:], ids=str)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("size", SIZES[3:], ids=str)
def test_float16_and_bfloat16_outputs_of_larger_pictures(backend, op, dtype, size):
    case = (op, *size, op in NORMED)
    compare_low(case, ours(backend, case, dtype, save=False), dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_same_bits_on_every_run(backend, op, dtype):
    case = (op, "real", 2, 37, 53, op in NORMED)
    first, second = ours(backend, case, dtype), ours(backend, case, dtype)
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("op", OPS)
def test_ops_on_another_stream(op):
    cuda, case = backends.get("cuda"), (op, "real", 2, 37, 53, op in NORMED)
    expected = ours(OnGpu(cuda), case)
    stream = torch.cuda.Stream(GPU)
    with torch.cuda.stream(stream):
        results = ours(OnGpu(cuda), case)
    stream.synchronize()
    for name in expected:
        assert torch.equal(results[name], expected[name]), name


def pictures(h, w, count=1):
    return torch.rand(count, 5, h, w, device=GPU)


@pytest.mark.parametrize("precision", ("exact", "half", "bf16"))
@torch.no_grad()
def test_network(precision):
    model = network_of(14)
    fold, x = folded(model), pictures(37, 53)
    network = backends.get("cuda").network(fold, precision, GPU)
    runs = [network(x, (0, 37, 0, 53)) for _ in range(4)]  # launched, recorded, replayed twice
    assert all(torch.equal(y, runs[0]) for y in runs[1:])
    exact = copy.deepcopy(model).double().to(GPU)(x.double())
    eager = backends.get("torch").network(fold, precision, GPU)(x, (0, 37, 0, 53))
    dtype = {"exact": torch.float32, "half": torch.float16, "bf16": torch.bfloat16}[precision]
    assert_close_as_eager("network", runs[0].to(dtype), eager.to(dtype), exact)


@torch.no_grad()
def test_graphs_equal_plain_launches(monkeypatch):
    fold = folded(network_of(1))
    recorded = backends.get("cuda").network(fold, "half", GPU)
    sizes = [(24, 40), (9, 70), (64, 64), (24, 40)]
    inputs_of = {size: pictures(*size) for size in sizes}
    monkeypatch.setenv("DBLR_FAST_GRAPHS", "off")
    plain = backends.get("cuda").network(fold, "half", GPU)
    expected = {size: plain(x, (0, size[0], 0, size[1])) for size, x in inputs_of.items()}
    assert not len(plain._graphs)
    monkeypatch.delenv("DBLR_FAST_GRAPHS")
    for _ in range(3):  # the workspace grows once and drops what was recorded
        for size in sizes:
            y = recorded(inputs_of[size], (1, size[0], 2, size[1]))
            assert torch.equal(y, expected[size][:, :, 1:, 2:])
    assert len(recorded._graphs) > 0


@torch.no_grad()
def test_network_on_several_streams_and_in_the_callers_graph():
    network = backends.get("cuda").network(folded(network_of(1)), "half", GPU)
    xs = [pictures(64, 96) for _ in range(8)]
    expected = [network(x, (0, 64, 0, 96)) for x in xs]
    streams, results = [torch.cuda.Stream(GPU) for _ in range(3)], []
    torch.cuda.synchronize()
    for i, x in enumerate(xs):
        with torch.cuda.stream(streams[i % 3]):
            results.append(network(x, (0, 64, 0, 96)))
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(results, expected))

    static, graph = xs[0].clone(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = network(static, (0, 64, 0, 96))
    for x, y in zip(xs, expected):
        static.copy_(x)
        graph.replay()
        assert torch.equal(out, y)


@torch.no_grad()
def test_engine(monkeypatch):
    model = network_of(14)
    x = pictures(61, 83, 2)
    exact = copy.deepcopy(model).double().to(GPU)(x.double())
    folded(model)
    model.frames, model.tail_skip = 5, True
    model = model.to(GPU)
    engine = Engine(model, backend="cuda", precision="exact")
    assert engine.backend == "cuda"
    eager = Engine(model, backend="torch", precision="exact")(x)
    assert_close_as_eager("engine", engine(x), eager, exact)
    tiled = Engine(model, backend="cuda", precision="exact", tile=24)(x)
    assert torch.equal(tiled, engine(x))
    with torch.inference_mode():
        for _ in range(3):
            assert torch.equal(engine(x), tiled)

    wide = pictures(61, 160)
    expected, limit = engine(wide), engine._network.workspace_bytes(61, 130)

    def scarce(self, size, device, allocate=CudaBackend.allocate):
        if size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return allocate(self, size, device)

    poor = Engine(model, backend="cuda", precision="exact")
    poor(x[..., :2, :2])  # weights are packed
    monkeypatch.setattr(CudaBackend, "allocate", scarce)
    assert torch.equal(poor(wide), expected)


def test_training_step_in_a_graph():
    """A block, forward and backward, in the caller's own CUDA graph."""
    cuda = backends.get("cuda")
    case = ("block", "real", 2, 16, 24, True)
    tensors, running, grad = inputs(*case)
    tensors, running, grad = [t.to(GPU) for t in tensors], [t.to(GPU) for t in running], grad.to(GPU)

    def step():
        x, first, second = tensors[0], tensors[1:5], tensors[5:]
        y, m1, v1, m2, v2, z1, z2 = cuda.residual_block(x, *first, *running[:2], *second, *running[2:], True, 1e-5,
                                                        True)
        return y, *cuda.residual_block_backward(grad, x, *first, m1, v1, z1, *second, m2, v2, z2, True, 1e-5, True)

    expected = step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    for _ in range(2):
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(results, expected))


@pytest.mark.parametrize("changes", [dict(), dict(precision__autocast="bf16"), dict(precision__autocast="fp16"),
                                     dict(loss__alpha=1e-2), dict(loss__alpha=1e-2, precision__autocast="bf16")],
                         ids=str)
def test_training_replayed_as_graphs(monkeypatch, changes):
    """Eight steps, of which the last five are replayed: the same values, weights, statistics and gradient scales."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # of the discriminator's convolutions
    results = []
    for recorded in (False, True):
        config = small("run", model__frames=5, model__width=64, optimiser__clip=1e-3,
                       cuda_graphs="always" if recorded else "never", **changes)
        step, windows = Step(config, Ranks(device=GPU)), Windows(24, 5)
        values = []
        for number in range(8):
            samples = [windows[2 * number + i] for i in range(2)]
            batch = {key: torch.stack([s[key] for s in samples]).pin_memory() for key in ("blurred", "sharp")}
            values.append(step(batch | {"numbers": torch.tensor([2 * number, 2 * number + 1])}, number)[0])
        results.append((values, step.state_dict()))
    (plain, plain_state), (replayed, replayed_state) = results
    assert repr(plain) == repr(replayed)  # a norm may be NaN where float16 overflows
    assert same_tree(plain_state, replayed_state)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU only")
@torch.no_grad()
def test_second_gpu():
    other, x = torch.device("cuda", 1), pictures(24, 40)
    fold, cuda = folded(network_of(1)), backends.get("cuda")
    y = cuda.network(fold, "exact", GPU)(x, (0, 24, 0, 40))
    assert torch.equal(cuda.network(fold, "exact", other)(x.to(other), (0, 24, 0, 40)).cpu(), y.cpu())


@pytest.mark.skipif(torch.cuda.get_device_capability(GPU) != (9, 0), reason="this GPU cannot run kernels for sm_90a")
@pytest.mark.parametrize("precision", ("half", "bf16"))
@pytest.mark.parametrize("h,w", [(1, 1), (3, 5), (37, 53), (129, 131), (200, 333)])
@torch.no_grad()
def test_sm90_kernels(monkeypatch, precision, h, w):
    cuda = backends.get("cuda")
    model = network_of(2)
    fold, x = folded(model), pictures(h, w)
    monkeypatch.setenv("DBLR_FAST_SM90", "off")
    portable = cuda.network(fold, precision, GPU)(x, (0, h, 0, w))
    monkeypatch.delenv("DBLR_FAST_SM90")
    if not cuda.uses_sm90(GPU):
        pytest.skip("built without sm_90a")
    network = cuda.network(fold, precision, GPU)
    hopper = [network(x, (0, h, 0, w)) for _ in range(3)]
    assert all(torch.equal(y, hopper[0]) for y in hopper)
    exact = copy.deepcopy(model).double().to(GPU)(x.double())
    dtype = torch.float16 if precision == "half" else torch.bfloat16
    assert_close_as_eager("sm_90a", hopper[0].to(dtype), portable.to(dtype), exact)


def test_levels_and_float64():
    assert backends.select(GPU).name == "cuda"
    assert backends.select(GPU, dtype=torch.float64).name == "torch"
    case = ("conv", "real", 1, 37, 53, False)
    exact = ours(OnGpu(backends.get("cuda")), case, save=False)["y"]
    fast = ours(OnGpu(backends.get("cuda").at("fast")), case, save=False)["y"]
    assert 0 < (exact - fast).norm() / exact.norm() < 2**-10
