"""The convolutions for Hopper (wgmma, tensor copies, clusters), run by the emulator and judged against float64."""

import pytest
import torch
import torch.nn.functional as F
from sm90_cases import GUARD, KINDS, TYPES, K, Memory, Problem, TrainingProblem, hopper, pack  # noqa: F401

SIZES = ((1, 1, 1), (3, 1, 7), (1, 3, 5), (1, 5, 300))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SIZES)
def test_sizes(kind, shape):
    Problem(kind, shape).check()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adds", (0, 1, 2))
def test_epilogue(kind, adds):
    Problem(kind, (2, 3, 5), adds=adds, relu=True).check()


def test_epilogue_without_scale():
    Problem("f16", (1, 2, 9), affine=False, relu=True).check()


def test_second_residual_alone():
    Problem("bf16", (1, 2, 9), adds=1).check(swapped_adds=True)


@pytest.mark.parametrize("kind, shape, adds", (("f16", (1, 37, 53), 1), ("f16", (2, 19, 6), 0),
                                              ("bf16", (1, 129, 131), 0)))
def test_long_walk(kind, shape, adds):
    """The ring goes round many times, blocks' shares begin and end within strips."""
    Problem(kind, shape, adds=adds, relu=True).check()


@pytest.mark.parametrize("multiprocessors", (1, 2, 3, 7, 132))
def test_shares(multiprocessors):
    """Any number of blocks gives the same bits."""
    problem = Problem("f16", (3, 4, 140), adds=1)
    expected = problem.run()[0]
    K.set_device(multiprocessors=multiprocessors)
    assert torch.equal(problem.check()[0], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_more_out_channels(kind):
    Problem(kind, (2, 5, 7), out=256, relu=True).check()
    Problem(kind, (1, 2, 3), out=128, adds=1).check()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", (1, 2, 4))
def test_clusters(kind, size):
    """However many blocks share a row's arrival: the same bits. Twice round the ring, and the end of a strip within."""
    problem = Problem(kind, (2, 7, 9), out=256, relu=True)
    K.set_device(multiprocessors=4, group=1)
    alone = problem.run()[0]
    K.set_device(multiprocessors=4, group=size)
    assert torch.equal(problem.check()[0], alone)
    problem = Problem(kind, (1, 2, 130), out=256, adds=1)
    problem.check()


@pytest.mark.parametrize("multiprocessors, group, grid", (
    (132, 132, (132, 4)), (132, 16, (132, 4)), (132, 18, (132, 2)), (7, 7, (4, 4)), (3, 3, (4, 1)), (1, 1, (4, 1))))
def test_as_many_blocks_as_run_at_once(multiprocessors, group, grid):
    """A cluster needs its multiprocessors in one group; a size that would leave more of them idle is not taken."""
    K.set_device(multiprocessors=multiprocessors, group=group)
    Problem("f16", (40, 1, 3), out=256).check()
    assert K.last_grid() == grid


@pytest.mark.parametrize("multiprocessors, group, grid", (
    (132, 132, (132, 2)), (132, 17, (124, 2)), (4, 1, (4, 1)), (1, 1, (4, 1))))
def test_deep_runs_in_pairs_wherever_one_can(multiprocessors, group, grid):
    """Also where that leaves multiprocessors idle."""
    K.set_device(multiprocessors=multiprocessors, group=group)
    Problem("f16", (40, 1, 3), inner=128, out=256).check()
    assert K.last_grid() == grid


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ((1, 1, 1), (1, 5, 7)))
def test_deep_with_taps(kind, shape):
    Problem(kind, shape, inner=256, out=256, relu=True, taps=True).check()


def test_deep_taps_alone():
    Problem("bf16", (1, 3, 130), inner=128, out=128, relu=True, taps=True, stored=False).check()


def test_deep_map_alone():
    Problem("f16", (3, 6, 9), inner=128, out=128).check()


def test_deep_long_walk():
    """One cluster for all, or two blocks by themselves: both rings go round many times."""
    for group in (1, 2):
        K.set_device(multiprocessors=2, group=group)
        Problem("f16", (1, 17, 131), inner=64, out=128, taps=True, relu=True).check()
        assert K.last_grid() == (2, group)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ((1, 1, 1), (2, 5, 7)))
def test_deep_mask_and_sums(kind, shape):
    """As the data gradient of a ReLU's output asks; rows of the last tile lie below the picture."""
    Problem(kind, shape, inner=256, out=256, affine=False, mask=True, sums=True).check()


def test_deep_mask_of_many_tiles():
    """Several tiles a block, a strip that ends in the middle of a tile's columns; the mask alone."""
    K.set_device(multiprocessors=1)
    Problem("f16", (1, 13, 131), inner=128, out=128, affine=False, mask=True, sums=True).check()
    Problem("bf16", (2, 6, 9), inner=128, out=128, relu=True, mask=True).check()


def test_deep_infinity_passes_only_where_the_mask_keeps():
    problem = Problem("f16", (1, 5, 6), inner=128, out=128, affine=False, mask=True)
    problem.x[0, 5, 2, 3] = float("inf")
    problem.mask[0, 7, 2, 2] = float("nan")
    y = problem.run()[0].permute(0, 3, 1, 2)
    expected = problem.expected(torch.float32)[0]
    assert expected.isinf().any() and torch.equal(y.isinf(), expected.isinf()) and not y[0, 7, 2, 2].isinf()


def test_same_bits_whatever_the_order_of_threads():
    small = Problem("bf16", (2, 7, 9), adds=2, relu=True)
    deep = Problem("f16", (1, 5, 9), inner=64, out=128, taps=True)
    masked = Problem("bf16", (1, 5, 9), inner=128, out=128, mask=True, sums=True)
    first = [*small.run(), *deep.run(), *masked.run()]
    for seed in (1, 2, 3):
        K.set_seed(seed)
        again = [*small.run(), *deep.run(), *masked.run()]
        assert all(torch.equal(a, b) for a, b in zip(first, again))


TRAINING = (("statistics", None), ("normalised", "normalised"), ("total", "plain"), ("", "normalised"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sums, mask", TRAINING)
@pytest.mark.parametrize("shape", ((1, 1, 1), (2, 3, 5), (1, 37, 53), (3, 2, 131)))
def test_training(kind, sums, mask, shape):
    TrainingProblem(kind, shape, sums, mask).check()


@pytest.mark.parametrize("sums, mask", TRAINING)
def test_training_has_the_same_bits_for_any_number_of_blocks(sums, mask):
    problem = TrainingProblem("bf16", (3, 4, 140), sums, mask, out=128)
    expected = problem.run()
    for multiprocessors in (1, 2, 3, 7):
        K.set_device(multiprocessors=multiprocessors)
        K.set_seed(multiprocessors)
        assert all(a is b or torch.equal(a, b) for a, b in zip(problem.run(), expected))
    problem.check()


@pytest.mark.parametrize("kind", KINDS)
def test_adjoint_weights(kind):
    """Those of the data gradient: channels change places, taps are reversed."""
    weight = torch.randn(128, 64, 3, 3, generator=torch.Generator().manual_seed(5))
    m, other = Memory(), Memory()
    pack(m, weight, kind, adjoint=True)
    pack(other, weight.transpose(0, 1).flip(2, 3).contiguous(), kind)
    m.check()
    assert torch.equal(m.outputs[0], other.outputs[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", tuple(TYPES))
def test_packed_weights(kind, source):
    """Fragment by fragment as the PTX manual lays A out."""
    weight = torch.randn(128, 192, 3, 3, generator=torch.Generator().manual_seed(4)).to(TYPES[source])
    m = Memory()
    pack(m, weight, kind)
    packed = m.outputs[0][GUARD:-GUARD].view(2, 3, 9, 4, 4, 8, 4, 2, 2, 2)
    m.check()
    # out: chunk, warp, row + 8, row; in: chunk, step, column + 8, column pair, column
    split = weight.to(TYPES[kind]).view(2, 4, 2, 8, 3, 4, 2, 4, 2, 9)
    assert torch.equal(packed, split.permute(0, 4, 9, 5, 1, 3, 7, 6, 2, 8))


def test_takes():
    def takes(x=64, out=64, kind="f16", source=None, **epilogue):
        given = {"x": (64, 1, 4, 4, x, kind), **(source or {})}
        return K.conv3x3_sm90_takes(given, out, {"y": (64, 1, 4, 4, out, kind), **epilogue})

    residual = (64, 1, 4, 4, 64, "f16")
    assert takes() and takes(out=256) and takes(x=256, out=256, taps=64, tap_weights=64) and takes(kind="bf16")
    assert takes(add0=residual, add1=residual) and takes(add1=residual)
    assert not takes(kind="f32")
    assert not takes(x=48) and not takes(x=0) and not takes(out=32) and not takes(out=0)
    assert not takes(source={"scale": 64, "shift": 64}) and not takes(source={"relu": True})
    assert takes(mask=residual) and takes(sums="statistics") and takes(mask=residual, sums="total")
    assert takes(mask=residual, norm_z=residual, sums="normalised")
    assert not takes(sums="total") and not takes(mask=residual, sums="statistics")
    assert not takes(mask=residual, norm_z=(128, *residual[1:]), sums="normalised")
    assert not takes(mask=residual, add0=residual) and not takes(sums="statistics", scale=64)
    deep = dict(x=128, out=128, mask=(64, 1, 4, 4, 128, "f16"))
    assert takes(**deep) and takes(**deep, sums="total")
    assert not takes(x=128, out=128, sums="total") and not takes(x=128, out=128, sums="statistics")
    assert not takes(**deep, norm_z=deep["mask"], sums="normalised") and not takes(**deep, mask_scale=64, mask_shift=64)
    assert not takes(**deep, y=None, taps=64, tap_weights=64)
    assert not takes(x=128, out=64) and not takes(x=128, out=192) and not takes(taps=64, tap_weights=64)
    assert not takes(x=256, out=64, add0=residual) and not takes(add0=residual, taps=64, tap_weights=64)
    assert not takes(y=None) and not takes(add0=residual, y=None)


def test_refusals():
    problem = Problem("f16", (1, 2, 3))
    for major, minor in ((8, 0), (8, 9), (9, 1), (10, 0), (12, 0)):
        K.set_device(major=major, minor=minor)
        with pytest.raises(RuntimeError, match="compute capability"):
            problem.run()
    K.set_device()
    m = Memory()
    y = m.out((1, 2, 3, 64), torch.float16)
    source = {"x": m.map(problem.x, "f16")}
    weights = pack(m, problem.weight, "f16")
    for h, kind, what in ((3, "f16", "y must have"), (2, "bf16", "y must have")):
        with pytest.raises(ValueError, match=what):
            K.conv3x3_sm90(source, weights, {"y": (y.data_ptr(), 1, h, 3, 64, kind)})
    with pytest.raises(ValueError, match="weights' type"):
        K.conv3x3_sm90(source, (*weights[:3], "bf16"), {"y": (y.data_ptr(), 1, 2, 3, 64, "f16")})
    deep_source, deep_weights = {"x": (64, 1, 2, 3, 128, "f16")}, (64, 128, 128, "f16")
    masked = {"y": (64, 1, 2, 3, 128, "f16"), "mask": (64, 1, 2, 3, 128, "f16"), "sums": "total"}
    with pytest.raises(ValueError, match="sums need a place"):
        K.conv3x3_sm90(deep_source, deep_weights, masked)
    with pytest.raises(ValueError, match="what masks must"):
        K.conv3x3_sm90(deep_source, deep_weights, {**masked, "mask": (64, 1, 3, 3, 128, "f16"), "partial": 64})
    with pytest.raises(ValueError, match="takes"):
        K.conv3x3_sm90(source, weights, {})
    with pytest.raises(ValueError, match="multiples of 64"):
        K.pack_weights_sm90(0, "f32", 48, 64, False, "f16", 0)


def test_nan_and_infinity_pass_through():
    problem = Problem("f16", (1, 4, 6), relu=True)
    problem.x[0, 5, 1, 2] = float("nan")
    problem.x[0, 5, 3, 5] = float("inf")
    m = Memory()
    y = torch.empty(1, 4, 6, 64, dtype=torch.float16)
    K.conv3x3_sm90({"x": m.map(problem.x, "f16")}, pack(m, problem.weight, "f16"),
                   {"y": (y.data_ptr(), 1, 4, 6, 64, "f16"), "relu": True})
    expected = F.conv2d(problem.x.float(), problem.weight.half().float(), padding=1).relu().half()
    assert torch.equal(y.permute(0, 3, 1, 2).isnan(), expected.isnan())
    assert torch.equal(y.permute(0, 3, 1, 2).isinf(), expected.isinf())


# ---- weight gradient ----
