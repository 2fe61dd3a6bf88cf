"""The whole network as the CPU backend runs it, at every level and on every instruction set that can run here."""

import copy
import dataclasses
import threading

import pytest
import torch
from test_cpu_kernels import (  # noqa: F401  (four are fixtures)
    BACKEND,
    BEST,
    ISAS,
    LAYOUTS,
    any_isa,
    isa,
    poisoned_memory,
    threads_as_before,
    used,
)
from tolerance import assert_close_as_eager, outputs

import dblr_fast
import python_ref
from dblr_fast import _cpu
from dblr_fast.backends.protocol import FoldedNetwork
from dblr_fast.engine import fold


def network_of(blocks=2, tail_skip=True, variant="3d", frames=5, **widths):
    torch.manual_seed(0)
    model = python_ref.DBLRNet(frames=frames, variant=variant, tail_skip=tail_skip, blocks=blocks, **widths)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.05) if p.dim() > 1 else p.normal_(0, 0.1)
        for m in model.modules():
            if isinstance(m, torch.nn.BatchNorm2d):
                m.weight.uniform_(0.5, 1.5)
                m.running_mean.normal_(0, 0.1)
                m.running_var.uniform_(0.5, 1.5)
    return model.eval()


def folded(model) -> FoldedNetwork:
    halves = [half for block in model.blocks for half in (block.first, block.second)]
    model.body = lambda: [*halves, model.conv31, model.conv32]
    return fold(model)


@pytest.mark.parametrize("variant,frames,tail_skip,blocks", [
    ("3d", 5, True, 2), ("3d", 5, False, 2), ("3d", 7, True, 0), ("multi", 5, True, 0), ("single", 1, False, 0)])
@pytest.mark.parametrize("h,w", ((1, 1), (3, 5), (37, 53)))
@torch.no_grad()
def test_network(isa, variant, frames, tail_skip, blocks, h, w):  # noqa: F811
    model = network_of(blocks, tail_skip, variant, frames)
    network = BACKEND.network(folded(model), "exact", torch.device("cpu"))
    x = torch.rand(16 if h * w < 100 else 1, frames, h, w)  # enough values to judge by
    y = torch.cat([network(picture[None], (0, h, 0, w)) for picture in x])
    tiny = h * w < 100  # too few values to learn from them what eager torch errs
    exact = copy.deepcopy(model).double()(x.double())
    assert_close_as_eager("network", y, outputs(model, x), exact, winograd=int(tiny))
    assert torch.equal(y[:1], network(LAYOUTS["transposed"](x[:1]), (0, h, 0, w)))


@torch.no_grad()
def test_network_on_a_part_agrees_with_the_whole(isa):  # noqa: F811
    """Up to rounding: Winograd's tiles on the part's border hold zeros for what lies outside and does not count."""
    model = network_of(1)
    network = BACKEND.network(folded(model), "exact", torch.device("cpu"))
    x = torch.rand(1, 5, 41, 67)
    eager, exact = model(x), copy.deepcopy(model).double()(x.double())
    for y0, y1, x0, x1 in ((0, 41, 0, 67), (0, 1, 0, 1), (40, 41, 66, 67), (7, 30, 20, 21), (13, 29, 9, 60)):
        parts = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            parts.append(network(x, (y0, y1, x0, x1)))
        assert torch.equal(*parts)
        here = (..., slice(y0, y1), slice(x0, x1))
        assert_close_as_eager("part", parts[0], eager[here], exact[here], exact.abs().max().item(), winograd=1)
    with pytest.raises(ValueError, match="within 41 x 67"):
        network(x, (0, 42, 0, 67))


@pytest.mark.parametrize("level, limit", (("exact", 2), ("fast", 4)))
@torch.no_grad()
def test_network_on_a_wide_picture(level, limit):
    """Strips of one row of tiles each, as wide pictures have them: only a strip's last two rows outlive it, and in
    narrow ones the whole picture is a strip."""
    model = network_of(2)
    network = BACKEND.network(folded(model), level, torch.device("cpu"))
    x = torch.rand(1, 5, 14, 2100)
    exact, eager = copy.deepcopy(model).double()(x.double()), model(x)
    y = network(x, (0, 14, 0, 2100))
    assert (y - exact).norm() < limit * (eager - exact).norm()
    narrow = network(x[..., :150], (0, 14, 0, 100))
    assert (narrow - exact[..., :100]).norm() < limit * (eager - exact)[..., :100].norm()


@torch.no_grad()
def test_network_reuses_its_workspace_and_serves_threads_at_once():
    network = BACKEND.network(folded(network_of(0)), "exact", torch.device("cpu"))
    pictures = [torch.rand(1, 5, h, 40) for h in (40, 20, 30)]
    expected = [network(x, (0, x.shape[2], 0, 40)) for x in pictures]
    assert len(network._spare) == 1
    assert network.workspace_bytes(40, 40) > network._spare[0].numel() > 0
    assert network.workspace_bytes(4000, 40) == network.workspace_bytes(1000, 40), "rows are to be streamed"
    address, failures = network._spare[0].data_ptr(), []
    network(pictures[1], (0, 20, 0, 40))
    assert network._spare[0].data_ptr() == address

    def work(i):
        for _ in range(4):
            x = pictures[i]
            if not torch.equal(network(x, (0, x.shape[2], 0, 40)), expected[i]):
                failures.append(i)

    threads = [threading.Thread(target=work, args=(i % 3,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


@pytest.mark.parametrize("level", BACKEND.precisions())
@torch.no_grad()
def test_network_in_little_memory(level):
    """Strips as high as fit: the same bits by all of them, down to one row of tiles."""
    if BACKEND.precisions()[level]:
        pytest.skip(BACKEND.precisions()[level])
    network = BACKEND.network(folded(network_of(1)), level, torch.device("cpu"))
    x = torch.rand(1, 5, 70, 640)
    expected, size = network(x, (0, 70, 0, 640)), network.workspace_bytes(70, 640)
    least = network.workspace_bytes(70, 640, 0)
    assert least < size == network.workspace_bytes(70, 640, size)
    between = network.workspace_bytes(70, 640, size - 1)
    assert least <= between < size
    for most in (least, between, size, 0):
        network._spare.clear()
        assert torch.equal(network(x, (0, 70, 0, 640), most), expected)
        assert network._spare[0].numel() < max(most, least + 1), "it takes more than it was given"
    with pytest.raises(ValueError, match="workspace must hold .* bytes, got 64"):
        y, room = torch.empty(1, 1, 70, 640), torch.empty(64, dtype=torch.uint8)
        network._network.run(1, (x.data_ptr(), 4, tuple(x.shape), x.stride()), (0, 70, 0, 640), room.data_ptr(), 64,
                             (y.data_ptr(), 4, tuple(y.shape), y.stride()))


@torch.no_grad()
def test_fast_errs_little_more(isa):  # noqa: F811
    """F(6x6): 2 to 4 times the error of eager torch is what the level promises (README, "Precision")."""
    model = network_of(2)
    x = torch.rand(1, 5, 37, 53)
    y = BACKEND.network(folded(model), "fast", torch.device("cpu"))(x, (0, 37, 0, 53))
    exact, eager = copy.deepcopy(model).double()(x.double()), model(x)
    assert (y - exact).norm() < 4 * (eager - exact).norm()


@torch.no_grad()
def test_half_keeps_what_lies_within_blocks_in_16_bits(isa):  # noqa: F811
    """Every block, of L31 and L32 too, adds a rounding to 11 bits, which the next may double."""
    model = network_of(2)
    half = BACKEND.network(folded(model), "half", torch.device("cpu"))
    x = torch.rand(1, 5, 37, 53)
    y, exact = half(x, (0, 37, 0, 53)), copy.deepcopy(model).double()(x.double())
    limit = 2 * 3 ** 0.5 * 2 ** -11 * exact.norm()
    assert 2 ** -15 * exact.norm() < (y - exact).norm() < limit
    part = half(x, (9, 30, 20, 41))
    assert (part - exact[:, :, 9:30, 20:41]).norm() < limit
    x[0, 2, 20, 20] = torch.nan
    assert half(x, (0, 37, 0, 53)).isnan().any()


def rounding_maps(network, x):
    """A FoldedNetwork of single frames in float64, but for what half rounds: what blocks' first layers give."""
    def conv(x, weight, bias):
        return torch.nn.functional.conv2d(x, weight.double(), bias.double(), padding=1)

    y = l2 = conv(conv(x.double(), *network.stem[:2]).relu(), *network.stem[2:]).relu()
    for first, second in zip(network.body[::2], network.body[1::2], strict=True):
        y = conv(conv(y, *first).relu().half().double(), *second) + y
    y = y + l2
    for weight, bias in zip(network.tail[:4:2], network.tail[1:4:2], strict=True):
        y = conv(y, weight, bias).relu()
    return conv(y, *network.tail[4:])


@torch.no_grad()
def test_half_errs_by_its_roundings(isa):  # noqa: F811
    """F(8x8) adds next to nothing: its own errors are a tenth of a rounding to 11 bits."""
    model = network_of(2, variant="single", frames=1)
    x = torch.rand(1, 1, 64, 61)
    y = BACKEND.network(folded(model), "half", torch.device("cpu"))(x, (0, 64, 0, 61))
    exact = copy.deepcopy(model).double()(x.double())
    assert (y - exact).norm() < 1.05 * (rounding_maps(folded(model), x) - exact).norm()


@torch.no_grad()
def test_half_refuses_what_16_bits_cannot_hold(isa):  # noqa: F811
    model = network_of(1)
    model.blocks[0].second.bn.weight.mul_(1e6)
    network = BACKEND.network(folded(model), "half", torch.device("cpu"))
    with pytest.raises(ValueError, match="Layer 5 of 9 gave values beyond 65504.*take precision exact or fast"):
        network(torch.rand(1, 5, 11, 13), (0, 11, 0, 13))


def carrying(*factors):
    """The identity network, but that the first layers of its body give their input times a factor."""
    network = folded(dblr_fast.DBLRNet(width=64, blocks=1, init="identity").eval())
    weight = torch.zeros_like(network.body[0][0])
    weight[range(64), range(64), 1, 1] = 1
    body = [(weight * factor, torch.zeros(64)) for factor in factors]
    return dataclasses.replace(network, body=(*body, *network.body[len(body):]))


@torch.no_grad()
def test_half_finds_one_number_beyond_its_range(isa):  # noqa: F811
    """At a corner, within, in the tile that ends outside the picture; beside what is not a number."""
    network = BACKEND.network(carrying(1, 0, 2, 0), "half", torch.device("cpu"))
    for y, x in ((0, 0), (20, 31), (39, 49)):
        frames = torch.rand(1, 5, 40, 50)
        frames[0, 2, y, x] = 32700
        assert network(frames, (0, 40, 0, 50)).isfinite().all()
        for value, layer in ((32900, 5), (65700, 3)):
            frames[0, 2, y, x] = value
            with pytest.raises(ValueError, match=f"Layer {layer} of 9 gave values beyond 65504"):
                network(frames, (0, 40, 0, 50))
        frames[0, 2, 10, 10] = torch.nan
        with pytest.raises(ValueError, match="Layer 3 of 9 gave values beyond 65504"):
            network(frames, (0, 40, 0, 50))


@torch.no_grad()
def test_half_numbers_are_rounded_to_nearest(isa):  # noqa: F811
    """Each pixel passes as it is and, half as much, in 16 bits: a number in these stays as it is."""
    network = BACKEND.network(carrying(1, 1), "half", torch.device("cpu"))
    x = torch.linspace(-1, 3, 5 * 40 * 50).view(1, 5, 40, 50)
    x[0, 2, :20] = 10.0 ** torch.linspace(-9, 3, 20 * 50).view(20, 50)
    y, passed = network(x, (0, 40, 0, 50)), x[:, 2:3].clamp(min=0)  # L1 and L2 end in a ReLU
    kept = 2 * (y - passed)
    in_tile = torch.nn.functional.max_pool2d(passed, 19, 1, 9)  # to whose largest number F(8x8) errs in proportion
    assert ((kept - passed.half()).abs() <= 2 * (passed * 2 ** -10 + 2 ** -24) + 2e-5 * in_tile).all()


@torch.no_grad()
def test_bf16_makes_products_of_8_bits(any_isa):  # noqa: F811
    """Maps and both sides of every product are rounded to 8 bits; Winograd's transforms double what that errs."""
    model = network_of(2)
    if not _cpu.has_bf16():
        with pytest.raises(ValueError, match="no products in bf16.*take half, which is more exact, or fast"):
            BACKEND.network(folded(model), "bf16", torch.device("cpu"))
        return
    network = BACKEND.network(folded(model), "bf16", torch.device("cpu"))
    x = torch.rand(1, 5, 37, 53)
    y, exact = network(x, (0, 37, 0, 53)), copy.deepcopy(model).double()(x.double())
    limit = 4 * (2 * 2 + 7) ** 0.5 * 2 ** -8 * exact.norm()
    assert 2 ** -9 * exact.norm() < (y - exact).norm() < limit
    part = network(x, (9, 30, 20, 41))
    assert (part - exact[:, :, 9:30, 20:41]).norm() < limit
    assert torch.equal(network(x * 1e30, (0, 37, 0, 53)).isfinite(), torch.ones(1, 1, 37, 53, dtype=torch.bool))
    x[0, 2, 20, 20] = torch.nan
    assert network(x, (0, 37, 0, 53)).isnan().any()


@pytest.fixture(params=("amx", "amx_model"))
def amx(request):
    if request.param not in ISAS:
        pytest.skip(f"{request.param} was not built")
    yield from used(request.param)


@pytest.mark.parametrize("h,w,blocks,width", (
    (1, 1, 1, 64), (3, 5, 1, 64), (2, 16, 1, 64), (5, 33, 0, 48), (37, 53, 2, 64), (36, 67, 1, 80), (9, 2100, 0, 64)))
@torch.no_grad()
def test_amx_errs_as_eager_bf16(amx, h, w, blocks, width):
    """Direct convolutions: no more error than torch's in bf16. Widths of half a matrix, pictures of less than one, and
    one so wide that strips are as low as they get."""
    model = network_of(blocks, width=width)
    network = BACKEND.network(folded(model), "bf16", torch.device("cpu"))
    x = torch.rand(16 if h * w < 100 else 1, 5, h, w)
    y = torch.cat([network(picture[None], (0, h, 0, w)) for picture in x])
    exact = copy.deepcopy(model).double()(x.double())
    eager = outputs(copy.deepcopy(model).bfloat16(), x.bfloat16())
    assert_close_as_eager("amx", y.bfloat16(), eager, exact)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert torch.equal(y[:1], network(LAYOUTS["transposed"](x[:1]), (0, h, 0, w)))


@pytest.mark.parametrize("h,w,blocks,width", ((1, 1, 1, 64), (5, 33, 0, 96), (37, 53, 2, 64), (9, 2100, 0, 32)))
@torch.no_grad()
def test_amx_half_splits_numbers_in_two(amx, h, w, blocks, width):
    """Of maps and of both sides of every product 16 bits count, and the exponents of float32."""
    model = network_of(blocks, width=width)
    network = BACKEND.network(folded(model), "half", torch.device("cpu"))
    x = torch.rand(1, 5, h, w)
    y, exact = network(x, (0, h, 0, w)), copy.deepcopy(model).double()(x.double())
    error, unit = (y - exact).norm(), (2 * blocks + 7) ** 0.5 * 2 ** -16 * exact.norm()
    assert error < 2 * unit
    large = network(x * 1e30, (0, h, 0, w))  # float16 ends at 65504
    assert (large - copy.deepcopy(model).double()(x.double() * 1e30)).norm() < 1e30 * 4 * unit
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert torch.equal(y, network(LAYOUTS["transposed"](x), (0, h, 0, w)))
    x[0, 2, h // 2, w // 2] = torch.nan
    assert network(x, (0, h, 0, w)).isnan().any()


@torch.no_grad()
def test_amx_half_of_other_widths_goes_by_winograd(amx):
    """Split maps have times 32 channels; with other widths `half` means what it means elsewhere, limits too."""
    model = network_of(1, width=48)
    network = BACKEND.network(folded(model), "half", torch.device("cpu"))
    x = torch.rand(1, 5, 11, 13)
    y, exact = network(x, (0, 11, 0, 13)), copy.deepcopy(model).double()(x.double())
    assert 2 ** -15 * exact.norm() < (y - exact).norm() < 2 * 2 ** 0.5 * 2 ** -11 * exact.norm()
    with pytest.raises(ValueError, match="beyond 65504.*take precision exact or fast"):
        network(x * 1e30, (0, 11, 0, 13))


@pytest.mark.parametrize("level", ("half", "bf16"))
@torch.no_grad()
def test_amx_on_a_part_agrees_with_the_whole_to_the_bit(amx, level):
    """A pixel's sums have one order, wherever the picture is cut."""
    network = BACKEND.network(folded(network_of(1)), level, torch.device("cpu"))
    x = torch.rand(1, 5, 41, 67)
    whole = network(x, (0, 41, 0, 67))
    for y0, y1, x0, x1 in ((0, 1, 0, 1), (40, 41, 66, 67), (7, 30, 20, 21), (13, 29, 9, 60)):
        assert torch.equal(network(x, (y0, y1, x0, x1)), whole[..., y0:y1, x0:x1])


def test_some_instruction_set_here_makes_bf16_products():
    """Where AVX2 runs, models of AVX512-BF16 and of AMX do."""
    for name in ("avx512_model", "amx_model"):
        if ISAS.get(name, "not built"):
            pytest.skip(f"{name}: {ISAS.get(name, 'not built')}")
        _cpu.set_isa(name)
        try:
            assert _cpu.has_bf16() and BACKEND.precisions()["bf16"] is None
        finally:
            _cpu.set_isa(BEST)


@torch.no_grad()
@pytest.mark.parametrize("level", ("half", "bf16"))
def test_widths_that_do_not_suit_winograd_stay_in_float32(level):
    chosen = "avx512_model" if not ISAS.get("avx512_model", "not built") else BEST
    _cpu.set_isa(chosen)
    try:
        if level == "bf16" and not _cpu.has_bf16():
            pytest.skip(f"{chosen} makes no products in bf16")
        torch.manual_seed(0)
        model = dblr_fast.DBLRNet(width=12, blocks=1).eval()
        x = torch.rand(1, 5, 9, 11)
        exact, narrow = (BACKEND.network(fold(model), name, torch.device("cpu")) for name in ("exact", level))
        torch.testing.assert_close(exact(x, (0, 9, 0, 11)), narrow(x, (0, 9, 0, 11)))
    finally:
        _cpu.set_isa(BEST)
