"""The triton backend on a GPU: parity with float64, and what only a device shows."""

import cpu_cases
import pytest
import torch
from cpu_cases import OPS
from cuda_cases import cases_of, compare_low
from test_cpu_kernels import NORMED, compare, name_of
from test_cpu_network import folded, network_of
from test_cuda_backend import EachLayerRounded
from tolerance import assert_close_as_eager

from dblr_fast import backends

REASON = backends.get("triton").unavailable()
pytestmark = pytest.mark.skipif(REASON is not None or not torch.cuda.is_available(),
                                reason=f"no GPU for Triton: {REASON}")

SIZES = (("odd", 1, 1, 1), ("odd", 3, 1, 7), ("odd", 2, 3, 5), ("real", 1, 37, 53), ("odd", 1, 129, 131))
CASES = [case for op in OPS for case in cases_of(op, SIZES)]
GPU = torch.device("cuda")


@pytest.fixture
def ours(monkeypatch):
    """cpu_cases.ours with its inputs on the GPU and its results brought back."""
    plain = cpu_cases.inputs

    def moved(*case):
        return tuple(tuple(t.to(GPU) for t in part) if isinstance(part, tuple) else part.to(GPU)
                     for part in plain(*case))

    def run(*args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(cpu_cases, "inputs", moved)
            results = cpu_cases.ours(*args, **kwargs)
        return {name: None if t is None else t.cpu() for name, t in results.items()}

    return run


@pytest.fixture
def backend():
    return backends.get("triton")


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_float32(ours, backend, case):
    compare(case, ours(backend, case))
    compare(case, ours(backend, case, save=False))


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c[3] < 30], ids=name_of)
def test_float16_and_bfloat16(ours, backend, case, dtype):
    compare_low(case, ours(backend, case, dtype), dtype)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
@pytest.mark.parametrize("op", OPS)
def test_same_bits_every_run_and_for_every_configuration(ours, backend, monkeypatch, op, dtype):
    case = (op, "real", 2, 37, 53, op in NORMED)
    first, second = ours(backend, case, dtype), ours(backend, case, dtype)
    monkeypatch.setenv("DBLR_FAST_AUTOTUNE", "off")
    fixed = ours(backend, case, dtype)
    for name in first:
        assert torch.equal(first[name], second[name]), name
        assert torch.equal(first[name], fixed[name]), name


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize("cin,cout", [(64, 64), (48, 64), (64, 256)])
@torch.no_grad()
def test_all_configurations_of_a_layer_give_the_same_bits(monkeypatch, cin, cout, dtype):
    """Tiles, tensor descriptors, blocks that walk: through a row's end, and rows that no block's last ones end with."""
    from dblr_fast.triton_kernels import convolution, tuning

    x, add = (torch.randn(2, 37, 250, c, device=GPU).to(dtype) for c in (cin, cout))
    weights = convolution.pack_weights(torch.randn(cout, cin, 3, 3, device=GPU) / 20, dtype)
    shift, chosen, convolution_of = torch.randn(cout, device=GPU), [], tuning.convolution
    monkeypatch.setattr(tuning, "convolution", lambda *_: chosen)

    def convolved(option):
        chosen[:] = [option]
        return convolution.convolve(x, weights, shift=shift, relu=True, add=(add,)).y

    options = convolution_of(dtype, cout, False, False, False, 250, 250, GPU)
    first = convolved(options[0])
    exact = torch.nn.functional.conv2d(*(t.double() for t in (x.permute(0, 3, 1, 2), weights.data[:, :cout, :cin]
                                       .reshape(3, 3, cout, cin).permute(2, 3, 0, 1), shift)), padding=1)
    exact = exact.relu().permute(0, 2, 3, 1) + add.double()
    assert_close_as_eager("y", first, exact.to(dtype), exact)
    for option in options[1:]:
        assert torch.equal(convolved(option), first), option


def test_fast_multiplies_in_tf32(ours, backend):
    case = ("conv", "real", 2, 9, 11, False)
    exact, fast = ours(backend, case)["y"], ours(backend.at("fast"), case)["y"]
    assert 0 < (exact - fast).norm() / exact.norm() < 2**-10


@pytest.mark.parametrize("precision", ("exact", "half", "bf16"))
@torch.no_grad()
def test_network_also_from_a_cuda_graph(backend, precision):
    model = network_of(2)
    fold, x = folded(model), torch.rand(1, 5, 37, 53)
    network, valid = backend.network(fold, precision, GPU), (0, 37, 0, 53)
    moved = x.to(GPU)
    y = network(moved, valid)
    exact = network_of(2).double()(x.double())
    if precision == "exact":
        assert_close_as_eager("network", y.cpu(), model(x), exact)
    else:
        dtype = torch.float16 if precision == "half" else torch.bfloat16
        assert_close_as_eager("network", y.cpu().to(dtype), EachLayerRounded(fold, dtype)(x), exact)
    for _ in range(2):  # recorded, replayed
        assert torch.equal(network(moved, valid), y)
    assert torch.equal(network(moved, (3, 30, 0, 50)), y[:, :, 3:30, :50]) and len(network.graphs) == 1
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = network(moved, valid)
    recorded.zero_()
    graph.replay()
    assert torch.equal(recorded, y)


def test_runs_on_the_current_stream(ours, backend):
    case = ("block", "odd", 2, 37, 53, True)
    plain, stream = ours(backend, case), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        other = ours(backend, case)
    assert all(torch.equal(plain[name], other[name]) for name in plain)
