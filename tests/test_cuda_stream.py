"""What the cuda backend asks of a stream, seen by the emulator: launches on the caller's alone, work that a graph can
replay, and a launch that the driver refuses."""

import emulator
import pytest
import torch
from cpu_cases import OPS, ours
from recording import Recording, check_graph
from test_cpu_kernels import NORMED
from test_cpu_network import folded, network_of
from test_model import SMALL, pair

import dblr_fast
from dblr_fast import backends
from dblr_fast.backends.cuda import CudaBackend

CPU = torch.device("cpu")
STREAM = 0x5EED0


@pytest.fixture
def backend(monkeypatch):
    backend = CudaBackend(module=emulator.load("_cuda_emulated"), emulated=True)
    monkeypatch.setattr(backend, "stream", lambda device: STREAM)
    yield backend
    backend.module.refuse_after(-1)
    backend.module.capture_end()


@torch.no_grad()
def new_network(backend, precision="half"):
    return backend.network(folded(network_of(1)), precision, CPU)


def case_of(op, widths="odd"):
    return op, widths, 2, 3, 5, op in NORMED


@pytest.mark.parametrize("sm90", ("off", "on"))
def test_everything_is_launched_on_the_current_stream(backend, monkeypatch, sm90):
    monkeypatch.setenv("DBLR_FAST_SM90", sm90)
    backend.module.streams()
    for op in OPS:
        ours(backend.at("half"), case_of(op))
        assert backend.module.streams() == {STREAM}, op
    network = new_network(backend)
    assert backend.module.streams() == {STREAM}
    network(torch.rand(1, 5, 4, 6), (0, 4, 0, 6))
    assert backend.module.streams() == {STREAM}


@pytest.mark.parametrize("sm90", ("off", "on"))
@torch.no_grad()
def test_a_graph_of_the_network(backend, monkeypatch, sm90):
    monkeypatch.setenv("DBLR_FAST_SM90", sm90)
    network, part = new_network(backend), (0, 5, 0, 7)
    pictures = torch.rand(3, 5, 5, 7)
    expected = [network(picture[None], part) for picture in pictures]
    frames = torch.zeros(1, 5, 5, 7)
    graph = Recording(backend.module)
    with graph:
        y = network(frames, part)
    assert graph.launches > 5
    assert y.isnan().all()  # while a stream is captured nothing runs
    for picture, right in zip(pictures, expected):
        frames.copy_(picture)
        graph.replay()
        assert torch.equal(y, right)


@pytest.mark.parametrize("widths", ("real", "odd"))
@pytest.mark.parametrize("op", OPS)
def test_a_graph_of_an_op_and_its_gradients(backend, op, widths):
    check_graph(backend, backend.module, case_of(op, widths))


def test_a_graph_of_a_training_step(backend, monkeypatch):
    """Forward with batch statistics, loss and all gradients, by the ops and autograd as users call them."""
    monkeypatch.setitem(backends._instances, "cuda", backend)
    model, _ = pair(**SMALL)
    first, second = (torch.rand(2, 6, 6, 5) for _ in range(2))

    def results(frames):
        loss = torch.nn.functional.mse_loss(model(frames[:, :5]), frames[:, 5:])
        return {"loss": loss, **dict(zip([n for n, _ in model.named_parameters()],
                                         torch.autograd.grad(loss, list(model.parameters()))))}

    with dblr_fast.use_backend("cuda"):
        expected = [results(frames) for frames in (first, second)]
        frames = torch.full_like(first, 0.5)
        graph = Recording(backend.module)
        with graph:
            recorded = results(frames)
    for given, right in zip((first, second), expected):
        frames.copy_(given)
        graph.replay()
        for name, value in right.items():
            assert torch.equal(recorded[name], value), name


def test_what_waits_for_the_device_cannot_be_recorded(backend):
    with pytest.raises(RuntimeError, match="waits for the device"), Recording(backend.module):
        torch.rand(3).sum().item()
    assert torch.rand(3).sum().item() > 0


def refused_one_by_one(backend, run):
    """run() with its first launch refused, its second, and so on until none is; returns the last's result and how
    many failed."""
    failed = 0
    while True:
        backend.module.refuse_after(failed)
        try:
            results = run()
        except RuntimeError as error:
            assert "launch was refused" in str(error)
            failed += 1
        else:
            backend.module.refuse_after(-1)
            return results, failed


@pytest.mark.parametrize("op", OPS)
def test_a_refused_launch_is_an_error_of_the_op(backend, op):
    case = case_of(op)
    expected = ours(backend, case)
    results, failed = refused_one_by_one(backend, lambda: ours(backend, case))
    assert failed > 3
    for name, value in results.items():
        assert torch.equal(value, expected[name]), name


@torch.no_grad()
def test_a_refused_launch_is_an_error_of_the_network(backend):
    x, part = torch.rand(1, 5, 4, 6), (0, 4, 0, 6)
    network, packing = refused_one_by_one(backend, lambda: new_network(backend))
    expected = new_network(backend)(x, part)
    result, running = refused_one_by_one(backend, lambda: network(x, part))
    assert packing > 5 and running > 5
    assert torch.equal(result, expected)
