"""The triton backend in Triton's interpreter, on CPU tensors; test_triton_kernels.py runs this file by itself.

The interpreter is chosen by TRITON_INTERPRET=1 before triton is imported, hence the process of its own.
"""

import copy

import pytest
import test_ops
import torch
from cpu_cases import OPS, WIDTHS, call_reference, inputs, ours
from cuda_cases import cases_of, compare_low
from recording import Recording, check_graph
from test_cpu_kernels import NORMED, compare, name_of, poisoned_memory  # noqa: F401
from test_cpu_network import folded, network_of
from test_cuda_backend import LAYOUTS, EachLayerRounded
from test_model import SMALL, pair
from tolerance import assert_close_as_eager, outputs

import dblr_fast
from dblr_fast import backends
from dblr_fast.backends.triton_backend import TritonBackend
from dblr_fast.engine import Engine
from dblr_fast.triton_kernels import convolution, norm, planes, tuning, weight_gradient

CPU = torch.device("cpu")
LOW = (torch.float16, torch.bfloat16)
BACKEND = TritonBackend()
WIDTHS["small"] = (16, 32, 48)


@pytest.fixture
def chosen(monkeypatch):
    """Ops, models and engines on CPU tensors run on the triton backend."""
    monkeypatch.setitem(backends._instances, "triton", BACKEND)
    with dblr_fast.use_backend("triton"):
        yield BACKEND


SIZES = (("odd", 1, 1, 1), ("small", 2, 1, 7))
LARGER = [(op, "small", 1, 17, 23, op in NORMED) for op in ("stem_3d", "block", "reconstruct")]  # several blocks


@pytest.mark.parametrize("case", [case for op in OPS for case in cases_of(op, SIZES)] + LARGER, ids=name_of)
def test_float32(case):
    compare(case, ours(BACKEND, case))


@pytest.mark.parametrize("case", [case for op in OPS for case in cases_of(op, (("odd", 2, 3, 5),))], ids=name_of)
def test_forward_without_gradients(case):
    compare(case, ours(BACKEND, case, save=False))


@pytest.mark.parametrize("case", [(op, "real", 1, 3, 5, True) for op in ("block",)], ids=name_of)
def test_float32_at_the_networks_width(case):
    compare(case, ours(BACKEND, case))


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("case", [case for op in OPS for case in cases_of(op, (("small", 3, 3, 5),))], ids=name_of)
def test_float16_and_bfloat16(case, dtype):
    compare_low(case, ours(BACKEND, case, dtype), dtype)


@pytest.mark.parametrize("op", ("conv_relu_residual", "reconstruct"))
def test_float16_outputs_of_larger_pictures(op):
    case = (op, "small", 1, 17, 23, op in NORMED)
    compare_low(case, ours(BACKEND, case, torch.float16, save=False), torch.float16)


@pytest.mark.parametrize("op", ("stem_3d", "block", "reconstruct"))
def test_any_strides_give_the_same_bits_on_every_run(op):
    case = (op, "small", 2, 1, 5, op in NORMED)
    plain = ours(BACKEND, case)
    for layout in list(LAYOUTS.values())[::2]:
        other = ours(BACKEND, case, layout=layout)
        for name in plain:
            assert torch.equal(plain[name], other[name]), name
        assert other["y"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("op", ("stem_2d", "conv_relu_residual", "block", "reconstruct"))
def test_inputs_are_left_alone_and_input_gradient_is_optional(op):
    case = (op, "small", 2, 1, 5, op in NORMED)
    tensors, running, grad = inputs(*case)
    before = copy.deepcopy((tensors, running, grad))
    full, part = ours(BACKEND, case), ours(BACKEND, case, need_x=False)
    assert part.pop("dx") is None
    for name in part:
        assert torch.equal(part[name], full[name]), name
    for a, b in zip((*tensors, *running, grad), (*before[0], *before[1], before[2])):
        assert torch.equal(a, b)


@pytest.mark.parametrize("level", ("half", "bf16"))
@pytest.mark.parametrize("op", ("stem_3d", "conv_relu_residual"))
def test_levels_convert_maps_on_the_way_in_and_out(op, level):
    case = (op, "small", 2, 3, 5, op in NORMED)
    dtype = torch.float16 if level == "half" else torch.bfloat16
    tensors, running, _ = inputs(*case)
    results = ours(BACKEND.at(level), case)
    assert all(t.dtype == torch.float32 for t in results.values())
    wide = call_reference(op, [t.to(dtype) for t in tensors], [t.to(dtype) for t in running], case[-1])
    exact = call_reference(op, [t.double() for t in tensors], [t.double() for t in running], case[-1])
    assert_close_as_eager(op, results["y"].to(dtype), wide, exact)
    assert BACKEND.at("exact") is BACKEND and BACKEND.at(level).at("exact").level == "exact"


# ---- kernels by themselves, where no op at these sizes takes every turn ----

def test_weight_gradient_adds_many_ranges(monkeypatch):
    g = torch.Generator().manual_seed(1)
    x, dy = torch.randn(1, 40, 41, 16, generator=g), torch.randn(1, 40, 41, 32, generator=g)
    assert weight_gradient.ranges_of(40 * 41, 128, 3)[0] > 2

    def gradient(t):
        weight = torch.zeros(32, 16, 3, 3, dtype=t, requires_grad=True)
        y = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2).to(t), weight, padding=1)
        return torch.autograd.grad(y, weight, dy.permute(0, 3, 1, 2).to(t))[0]

    ours = weight_gradient.weight_gradient(x, dy)
    assert_close_as_eager("dw", ours, gradient(torch.float32), gradient(torch.float64))


def test_statistics_of_a_large_mean_lose_nothing():
    """Tiles are merged by their means and deviations: sums of squares would cancel."""
    x = torch.randn(2, 19, 23, 16, generator=torch.Generator().manual_seed(2)) + 30
    weight = torch.zeros(16, 16, 3, 3)
    weight[range(16), range(16), 1, 1] = 1
    z = convolution.convolve(x, convolution.pack_weights(weight, torch.float32), sums="statistics")
    mean, var, _ = norm.statistics(z.partial, 2 * 19 * 23, z.tile, torch.ones(16), torch.zeros(16), 1e-5)

    def torchs(t):
        return torch.var_mean(x.to(t).flatten(0, 2), 0, correction=0)

    assert torch.equal(z.y, x)
    for name, got, eager, exact in zip(("var", "mean"), (var, mean), torchs(torch.float32), torchs(torch.float64)):
        assert_close_as_eager(name, got, eager, exact)


@pytest.mark.parametrize("order", [(0, 3, 1, 2), (3, 1, 2, 0), (1, 0, 3, 2)])
def test_planes_of_eleven_frames_in_any_strides(order):
    """A picture fills no tile, and the next begins another."""
    sizes = [0] * 4
    for at, size in zip(order, (3, 11, 9, 15)):
        sizes[at] = size
    x = torch.rand(*sizes, generator=torch.Generator().manual_seed(3)).permute(order)
    weight = torch.randn(20, 11, 3, 3, generator=torch.Generator().manual_seed(4)) * 0.1
    y, partial = planes.convolve_planes(x, planes.pack_planes(weight, torch.float32), 20, sums=True)

    def torchs(t):
        return torch.nn.functional.conv2d(x.to(t), weight.to(t), padding=1)

    assert_close_as_eager("y", y.permute(0, 3, 1, 2), torchs(torch.float32), torchs(torch.float64))
    totals = (torchs(t).sum((0, 2, 3)) for t in (torch.float32, torch.float64))
    assert_close_as_eager("sum", norm.sums(partial)[0], *totals)


def test_nan_passes_through():
    case = ("conv_relu_residual", "small", 1, 5, 7, False)
    tensors, running, _ = inputs(*case)
    x = tensors[0].clone()
    x[0, 0, 2, 3] = torch.nan
    y = BACKEND.conv_bn_act(x, *tensors[1:5], *running, tensors[5], True, False, 1e-5, False)[0]
    assert y[:, :, 1:4, 2:5].isnan().all() and y[:, :, :, 5:].isfinite().all()


# Ways to read maps that are chosen among on a GPU, in runs of 16 pixels, wherever they may be taken.
WAYS = {"boxes": dict(BOXES=True), "walk": dict(WALK=True), "walk through boxes": dict(BOXES=True, WALK=True)}


@pytest.fixture
def way(request, monkeypatch):
    """One of WAYS is taken; the list says for each launch whether it could be."""
    taken, convolution_of, way = [], tuning.convolution, WAYS[request.param]

    def options(dtype, cout, tf32, sums, taps, boxed, walked, device):
        plain = convolution_of(dtype, cout, tf32, sums, taps, boxed, walked, device)[0]
        possible = boxed if "BOXES" in way else True
        if "WALK" in way:
            possible = possible and walked and not sums and not taps and plain["BLOCK_M"] <= 64
        taken.append(bool(possible))
        return [plain | dict(BLOCK_P=16) | way if possible else plain]

    monkeypatch.setattr(tuning, "convolution", options)
    return taken


@pytest.mark.parametrize("way,op,dtype", [
    *(("boxes", op, dtype) for op in OPS for dtype in (torch.float32, torch.float16)),
    ("walk", "stem_3d", torch.float16), ("walk", "block", torch.float16),
    ("walk through boxes", "conv_relu_residual", torch.float16)], indirect=["way"], ids=str)
def test_ways_to_read_maps(way, op, dtype):
    """Rows that runs do not fill, several pictures, channels that fill no step."""
    case = (op, "small", 2, 3, 19, False)
    through = ours(BACKEND, case, dtype)
    assert any(way)
    if dtype == torch.float32:
        compare(case, through)
    else:
        compare_low(case, through, dtype)


@pytest.mark.parametrize("way", ("boxes", "walk through boxes"), indirect=True)
@torch.no_grad()
def test_ways_to_read_maps_of_a_network(way):
    fold = folded(network_of(1))
    x = torch.rand(2, 5, 4, 17)
    through = BACKEND.network(fold, "half", CPU)(x, (0, 4, 0, 17))
    assert sum(way) >= len(way) - 2  # L33 and L34 do not walk
    exact = BACKEND.network(fold, "exact", CPU)(x, (0, 4, 0, 17))
    eager = EachLayerRounded(fold, torch.float16)(x)
    assert_close_as_eager("network", through.half(), eager, exact.double())


@pytest.mark.parametrize("height,rows", [(1, 1), (7, 1), (7, 2), (7, 3), (7, 7), (7, 9)])
@torch.no_grad()
def test_walking_gives_the_bits_of_tiles_however_many_rows(monkeypatch, height, rows):
    """Poisoned output, all that may follow the sums, rows that no block's last ones end with."""
    g = torch.Generator().manual_seed(5)
    x, add, mask = (torch.randn(2, height, 21, 40, generator=g).half() for _ in range(3))
    weights = convolution.pack_weights(torch.randn(40, 40, 3, 3, generator=g), torch.float16)
    scale, shift = torch.rand(40, generator=g), torch.randn(40, generator=g)
    norm = convolution.Norm(scale, shift, scale, shift)

    def convolved(**way):
        options = [dict(BLOCK_M=64, BLOCK_P=16, BOXES=False, WALK=False, num_warps=1, num_stages=1) | way]
        monkeypatch.setattr(tuning, "convolution", lambda *_: options)
        return convolution.convolve(x, weights, scale=scale, shift=shift, relu=True, add=(add, x), mask=mask,
                                    mask_norm=norm).y

    monkeypatch.setattr(tuning, "rows_to_walk", lambda *_: rows)
    tiles = convolved()
    assert tiles.isfinite().all() and torch.equal(convolved(WALK=True), tiles)
    assert torch.equal(convolved(WALK=True, BOXES=True), tiles)


class Launches:
    """Keeps launches instead of running them, as the emulated CUDA library does (see recording.py)."""

    def __init__(self, monkeypatch):
        self.kept, self.capturing, self.start = [], False, tuning._start
        monkeypatch.setattr(tuning, "_start", self.launch)

    def launch(self, *arguments):
        if self.capturing:
            self.kept.append(arguments)
        else:
            self.start(*arguments)

    def capture_begin(self):
        self.capturing = True

    def capture_end(self):
        self.capturing = False

    def captured(self):
        return len(self.kept)

    def replay(self, first, last):
        for arguments in self.kept[first:last]:
            self.start(*arguments)


@pytest.mark.parametrize("op", OPS)
def test_a_graph_of_an_op_and_its_gradients(monkeypatch, op):
    check_graph(BACKEND, Launches(monkeypatch), (op, "small", 2, 1, 7, op in NORMED))


@torch.no_grad()
def test_a_graph_of_the_network(monkeypatch):
    network, part = BACKEND.network(folded(network_of(0)), "half", CPU), (0, 3, 0, 5)
    picture, frames = torch.rand(1, 5, 3, 5), torch.zeros(1, 5, 3, 5)
    expected = network(picture, part)
    graph = Recording(Launches(monkeypatch))
    with graph:
        y = network(frames, part)
    frames.copy_(picture)
    graph.replay()
    assert torch.equal(y, expected)


# ---- the network ----

@pytest.mark.parametrize("precision", ("exact", "half", "bf16"))
@torch.no_grad()
def test_network(precision):
    model = network_of(1)
    fold = folded(model)
    network = BACKEND.network(fold, precision, CPU)
    x = torch.rand(1, 5, 7, 9)
    y = network(x, (0, 7, 0, 9))
    assert y.dtype == torch.float32 and y.shape == (1, 1, 7, 9)
    exact = copy.deepcopy(model).double()(x.double())
    if precision == "exact":
        assert_close_as_eager("network", y, outputs(model, x), exact)
    else:
        dtype = torch.float16 if precision == "half" else torch.bfloat16
        assert_close_as_eager("network", y.to(dtype), EachLayerRounded(fold, dtype)(x), exact)
    assert torch.equal(network(x.transpose(2, 3).contiguous().transpose(2, 3), (2, 7, 1, 7)), y[:, :, 2:, 1:7])


@pytest.mark.parametrize("variant,frames,tail_skip", [("3d", 7, False)])
@torch.no_grad()
def test_network_variants(variant, frames, tail_skip):
    model = network_of(0, variant=variant, frames=frames, tail_skip=tail_skip)
    network, x = BACKEND.network(folded(model), "exact", CPU), torch.rand(1, frames, 3, 5)
    y = torch.cat([network(picture[None], (0, 3, 0, 5)) for picture in x])
    assert_close_as_eager("network", y, outputs(model, x), copy.deepcopy(model).double()(x.double()))


def test_training_step_of_a_model(chosen):
    model, specification = pair(**SMALL)
    x, target = torch.rand(2, 5, 4, 5), torch.rand(2, 1, 4, 5)

    def step(module, dtype):
        module = copy.deepcopy(module).to(dtype).train()
        torch.nn.functional.mse_loss(module(x.to(dtype)), target.to(dtype)).backward()
        named = {name: p.grad for name, p in module.named_parameters()}
        return named | {name: b for name, b in module.named_buffers() if "running" in name}

    results, eager = step(model, torch.float32), step(specification, torch.float32)
    exact = step(specification, torch.float64)
    for name, value in results.items():
        if name.endswith("conv.bias") and "blocks" in name or name in ("conv31.conv.bias", "conv32.conv.bias"):
            assert (value == 0).all(), name
        else:
            # Gradients of one tensor after a dozen layers: judged on the scale of the largest of its kind.
            kind = name.rsplit(".", 1)[-1]
            scale = max(e.abs().max().item() for n, e in exact.items() if n.endswith(kind))
            assert_close_as_eager(name, value, eager[name], exact[name], scale)


def test_opcheck():
    test_ops.test_opcheck("triton", True, "residual_block")
    test_ops.test_opcheck_of_backward_and_inference("triton", "residual_block")


def test_compiled_model_gives_the_same_bits(chosen):
    model, x = pair(**SMALL)[0].train(), torch.rand(2, 5, 3, 4)
    plain, compiled = copy.deepcopy(model), torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    y, other = plain(x), compiled(x)
    assert torch.equal(y, other)
    y.sum().backward()
    other.sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), compiled.parameters()))


@torch.no_grad()
def test_engine(chosen):
    model, specification = pair(**SMALL)
    x = torch.rand(1, 5, 9, 11)
    engine = Engine(model)
    assert engine.backend == "triton"
    y = engine(x)
    exact = copy.deepcopy(specification).double().eval()(x.double())
    assert_close_as_eager("engine", y, outputs(specification.eval(), x), exact)
    tiled = Engine(model, tile=5)
    tiled.halo = 3  # less than is exact: only that tiles run is asked here
    assert tiled(x).shape == y.shape


def test_autocast_gives_float32_parameters_their_gradients(chosen):
    model, _ = pair(**SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        y = model.train()(torch.rand(2, 5, 3, 4))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


# ---- choice ----

def test_float64_is_refused_by_name(chosen):
    x, w, v = torch.rand(1, 4, 5, 5).double(), torch.rand(4, 4, 3, 3).double(), torch.ones(4).double()
    with pytest.raises(ValueError, match="computes in float32, float16, bfloat16, not in float64; convert it"):
        dblr_fast.ops.conv_bn_act(x, w, v, v, v, v, v)
    with pytest.raises(RuntimeError, match="takes float32, float16 and bfloat16, got torch.float64"):
        chosen.conv_bn_act(x, w, v, v, v, v, v, None, False, False, 1e-5, False)


def test_precisions_and_devices():
    assert BACKEND.precisions() == dict.fromkeys(("exact", "fast", "half", "bf16"))
    assert BACKEND.unavailable() is None and BACKEND.unavailable(CPU) is None
    assert "takes tensors on the CPU" in BACKEND.unavailable(torch.device("cuda"))
    with pytest.raises(ValueError, match="there is no such level"):
        BACKEND.network(folded(network_of(0)), "double", CPU)
    assert tuning.device_facts(CPU).name == "interpreter"
