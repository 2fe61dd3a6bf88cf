"""The engine: folded weights, tiles that agree with the whole picture, bounded memory, fresh weights."""

import copy
import gc
import types
import weakref

import pytest
import torch
from cases import BACKENDS
from test_model import SMALL, pair

import dblr_fast
from dblr_fast import memory
from dblr_fast.engine import DEFAULT_WORKSPACE, Engine, engine_of
from dblr_fast.tiles import grid, plan
from tolerance import assert_close_as_eager, outputs


@pytest.fixture(params=BACKENDS)
def backend(request):
    with dblr_fast.use_backend(request.param):
        yield request.param


@pytest.fixture(scope="module")
def models():
    ours, specification = pair()
    return ours.eval(), specification.eval()


def winograd_layers(backend, model):
    return len(model.body()) + 4 if backend == "cpu" else 0  # all but L1


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 5), (37, 53)])
def test_parity(backend, models, size):
    ours, specification = models
    x = torch.rand(2, 5, *size)
    with torch.no_grad():
        exact = copy.deepcopy(specification).double()(x.double())
    assert_close_as_eager("engine", Engine(ours)(x), outputs(specification, x, backend), exact,
                          winograd=winograd_layers(backend, ours))


@pytest.mark.parametrize("tile", [7, 24, 64])
def test_tiles_agree_with_the_whole(backend, tile):
    """With the exact halo the only difference left is rounding: the order of sums, and Winograd's tiles at borders."""
    ours, specification = pair(width=16, blocks=2)
    x = torch.rand(1, 5, 61, 83)
    whole, tiled = Engine(ours, tile="off")(x), Engine(ours, tile=tile)(x)
    with torch.no_grad():
        exact = copy.deepcopy(specification).double().eval()(x.double())
    eager = outputs(specification.eval(), x, backend)
    for name, y in (("whole", whole), ("tiled", tiled)):
        assert_close_as_eager(name, y, eager, exact, winograd=winograd_layers(backend, ours))


def test_halo_is_what_the_network_sees(models):
    """A pixel further away than the halo changes nothing; one at the halo does. By torch's direct convolutions: in
    Winograd's tiles rounding travels a few pixels further."""
    ours, _ = models
    engine = Engine(ours, tile="off", backend="torch")
    assert engine.halo == 35
    x = torch.rand(1, 5, 80, 5)
    y = engine(x)
    for distance, equal in ((36, True), (35, False)):
        changed = x.clone()
        changed[..., 40 + distance, :] += 100
        assert torch.equal(engine(changed)[..., 40, :], y[..., 40, :]) == equal


def test_bounded_workspace_agrees(backend):
    ours, _ = pair(width=16, blocks=2)
    x = torch.rand(1, 5, 150, 170)
    engine = Engine(ours)
    whole = engine(x)
    small = Engine(ours, workspace=engine._network.workspace_bytes(60, 60))
    torch.testing.assert_close(small(x), whole)
    assert len(plan(150, 170, "auto", small.halo, small.workspace, engine._network.workspace_bytes)) > 1


@pytest.mark.parametrize("height,width", [(720, 1280), (1080, 1920), (2160, 3840), (4320, 7680), (64, 30000)])
def test_workspace_is_bounded_by_the_tile(backend, models, height, width):
    engine = Engine(models[0])
    engine(torch.rand(1, 5, 8, 8))
    tiles = plan(height, width, "auto", 35, DEFAULT_WORKSPACE, engine._network.workspace_bytes)
    assert max(engine._network.workspace_bytes(*t.crop_size) for t in tiles) <= DEFAULT_WORKSPACE
    covered = torch.zeros(height, width, dtype=torch.uint8)
    for t in tiles:
        covered[t.y0:t.y1, t.x0:t.x1] += 1
    assert (covered == 1).all()


def test_maps_of_a_360p_picture_stay_small():
    """On a CPU a few rows of each map: the 31 maps of 64 channels, kept whole, would take 1.8 GB."""
    engine = Engine(dblr_fast.DBLRNet(), backend="cpu")
    engine(torch.rand(1, 5, 8, 8))
    network = engine._network
    assert network.workspace_bytes(360, 640) <= 60 * 2**20
    assert network.workspace_bytes(720, 640) == network.workspace_bytes(360, 640)


def test_rows_are_kept_in_less_memory_before_tiles_are_taken():
    model = dblr_fast.DBLRNet(blocks=1).eval()
    x = torch.rand(1, 5, 60, 640)
    whole = Engine(model, backend="cpu", precision="fast")
    expected, needs = whole(x), whole._network.workspace_bytes
    assert needs(60, 640, 0) < needs(60, 640)
    short = Engine(model, backend="cpu", precision="fast", workspace=needs(60, 640, 0))
    assert torch.equal(short(x), expected)
    network, calls = whole._network, []

    class Scarce:
        workspace_bytes = staticmethod(network.workspace_bytes)

        def __call__(self, frames, valid, most):
            calls.append((tuple(frames.shape[-2:]), most))
            if needs(*frames.shape[-2:], most) > needs(60, 640, 0):
                raise MemoryError
            return network(frames, valid, most)

    whole._network = Scarce()
    assert torch.equal(whole(x), expected), "memory ran out, and fewer rows were enough"
    assert len(calls) == 2 and calls[0][0] == calls[1][0] == (60, 640) and calls[1][1] < calls[0][1]


@pytest.mark.parametrize("free, workspace", ((None, DEFAULT_WORKSPACE), (2**40, DEFAULT_WORKSPACE),
                                             (200 * 2**20, 100 * 2**20), (0, 64 * 2**20)))
def test_maps_take_no_more_than_half_of_the_memory_that_is_free(models, monkeypatch, free, workspace):
    monkeypatch.setattr(memory, "available", lambda: free)
    assert Engine(models[0], device="cpu").workspace == workspace
    assert Engine(models[0], device="cpu", workspace=12345).workspace == 12345


def test_grid_ends_at_the_border_or_the_halo():
    for t in grid(100, 90, 3, 2, 35):
        assert t.cy0 == max(0, t.y0 - 35) and t.cy1 == min(100, t.y1 + 35)
        assert t.cx0 == max(0, t.x0 - 35) and t.cx1 == min(90, t.x1 + 35)


def test_smaller_tiles_when_memory_runs_out(models, monkeypatch):
    with dblr_fast.use_backend("torch"):
        engine = Engine(models[0])
        x = torch.rand(1, 5, 90, 100)
        whole = engine(x)
        network, sizes = engine._network, []

        class Scarce:
            workspace_bytes = staticmethod(network.workspace_bytes)

            def __call__(self, frames, valid, most=None):
                sizes.append(frames.shape[-2:])
                if frames.shape[-2] * frames.shape[-1] > 90 * 85:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return network(frames, valid, most)

        engine._network = Scarce()
        torch.testing.assert_close(engine(x), whole, rtol=0, atol=1e-4 * whole.abs().max().item())
        assert len(sizes) > 2
        none = Engine(models[0])
        none(x[..., :8, :8])
        monkeypatch.setattr(type(none._network), "__call__", lambda *a: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError, match="memory ran out; free memory"):
            none(x)


CHANGES = {
    "in place": lambda m: m.conv34.weight.add_(0.01),
    "through .data": lambda m: m.conv34.weight.data.mul_(1.5),
    "replaced": lambda m: setattr(m.conv34, "weight", torch.nn.Parameter(m.conv34.weight * 2)),
    "running statistic": lambda m: m.conv31.bn.running_var.mul_(3),
    "another module": lambda m: setattr(m.blocks[0].first, "conv", torch.nn.Conv2d(8, 8, 3, padding=1)),
    "state dict": lambda m: m.load_state_dict({k: v * 0.9 for k, v in m.state_dict().items()}),
    "optimizer step": lambda m: step(m),
}


def step(model):
    model.train()
    with torch.enable_grad():
        model(torch.rand(2, 5, 6, 6)).sum().backward()
    torch.optim.Adam(model.parameters(), lr=0.01).step()
    model.eval()


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_seen(backend, change):
    if change == "through .data" and backend == "torch":
        change = "in place"  # torch counts no version for .data; the cpu backend compares contents
    ours, specification = pair(**SMALL)
    ours.eval()
    x = torch.rand(1, 5, 9, 12)
    with torch.no_grad():
        before = ours(x)
        CHANGES[change](ours)
        after = ours(x)
        specification.load_state_dict(ours.state_dict())
        wanted = specification.eval()(x)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", [change for change in CHANGES if change != "through .data"])
def test_changed_weights_are_seen_where_the_device_works_while_they_are_compared(change):
    model = dblr_fast.DBLRNet(**SMALL).eval()
    engine, x = Engine(model, backend="torch"), torch.rand(2, 5, 9, 12)
    engine._queues = True  # as on a GPU
    calls = []

    class Counted:
        def __init__(self, network):
            self.network, self.workspace_bytes = network, network.workspace_bytes

        def __call__(self, *arguments):
            calls.append(self.network)
            return self.network(*arguments)

    network_of = engine._backend.network
    engine._backend = types.SimpleNamespace(network=lambda *arguments: Counted(network_of(*arguments)))
    with torch.no_grad():
        before = engine(x)
        assert torch.equal(engine(x), before) and len(calls) == 4 and len(set(map(id, calls))) == 1
        CHANGES[change](model)
        calls.clear()
        after = engine(x)
        assert len(calls) == 4 and calls[0] is calls[1] is not calls[2] and calls[2] is calls[3], "begun, made again"
        assert torch.equal(after, Engine(model, backend="torch")(x)) and not torch.equal(after, before)


def test_changed_inference_tensors_are_seen(backend):
    """Torch counts no versions of what was made in inference mode."""
    with torch.inference_mode():
        model = dblr_fast.DBLRNet(**SMALL).eval()
        assert model.conv34.weight.is_inference()
        engine, x = Engine(model, backend=backend), torch.rand(1, 5, 9, 12)
        before = engine(x)
        model.conv34.weight.mul_(1.5)
        assert not torch.equal(before, engine(x))


def test_reused_buffers_do_not_leak_between_pictures(backend):
    ours, _ = pair(**SMALL)
    engine = Engine(ours)
    x, small = torch.rand(1, 5, 33, 41), torch.rand(1, 5, 6, 50)
    first, other = engine(x), engine(small)
    engine(torch.full((1, 5, 40, 60), float("nan")))
    assert torch.equal(engine(x), first) and torch.equal(engine(small), other)


def test_batches_and_strides(backend):
    ours, _ = pair(**SMALL)
    engine = Engine(ours)
    x = torch.rand(3, 5, 12, 14)
    singles = torch.cat([engine(x[i:i + 1]) for i in range(3)])
    assert torch.equal(engine(x), singles)
    assert torch.equal(engine(x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)), singles)


def test_threads_give_the_same_picture(backend):
    ours, _ = pair(width=16, blocks=2)
    x = torch.rand(1, 5, 40, 50)
    threads, pictures = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            pictures.append(Engine(ours)(x))
    finally:
        torch.set_num_threads(threads)
    if backend == "cpu":
        assert torch.equal(pictures[0], pictures[1]) and torch.equal(pictures[0], pictures[2])
    else:
        torch.testing.assert_close(pictures[0], pictures[1])


def test_engine_does_not_keep_its_module_alive():
    ours, _ = pair(**SMALL)
    with torch.no_grad():
        ours.eval()(torch.rand(1, 5, 6, 6))
    alive = weakref.ref(ours)
    del ours
    gc.collect()
    assert alive() is None


def test_choices_are_followed():
    ours, _ = pair(**SMALL)
    assert Engine(ours, backend="torch").backend == "torch"
    assert Engine(ours).precision == "exact"
    with dblr_fast.use_backend("torch"):
        assert Engine(ours).backend == "torch" and engine_of(ours).backend == "torch"
        with dblr_fast.precision("bf16"):
            low = engine_of(ours)(torch.rand(1, 5, 9, 9))
        assert low.dtype == torch.float32


REFUSALS = [
    (dict(precision="double"), "precision must be one of exact, fast, half, bf16; got 'double'"),
    (dict(precision="half", backend="torch"), "does not offer precision 'half' on cpu"),
    (dict(backend="vulkan"), "backend must be one of auto, torch, cpu, cuda, triton; got 'vulkan'"),
    (dict(tile=0), "tile must be 'auto', 'off' or a number of pixels of at least 1; got 0"),
    (dict(tile="big"), "tile must be 'auto', 'off' or a number"),
]


@pytest.mark.parametrize("arguments,message", REFUSALS)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        Engine(pair(**SMALL)[0], **arguments)


@pytest.mark.parametrize("frames,message", [
    (torch.rand(5, 8, 8), r"wanted frames \(N, 5, H, W\)"),
    (torch.rand(1, 3, 8, 8), r"wanted frames \(N, 5, H, W\)"),
    (torch.rand(1, 5, 0, 8), "at least one pixel"),
    (torch.rand(1, 5, 8, 8).double(), "wanted float32 luma"),
])
def test_refuses_wrong_frames(frames, message):
    with pytest.raises(ValueError, match=message):
        Engine(pair(**SMALL)[0])(frames)
