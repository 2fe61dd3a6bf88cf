"""The training script: a pool, a pack, a few steps, resuming, and the file it ships."""

import json
import sys

import numpy as np
import pytest
import torch
from tolerance import assert_close_as_eager

cv2 = pytest.importorskip("cv2", reason="training needs OpenCV: pip install opencv-python-headless")

import dblr_fast
from dblr_fast.checkpoint import read_metadata
from dblr_fast.training import first_weights
from dblr_fast.training.pool import Pool
from dblr_fast.training.recipe import (ALL, FlatResponse, Muon, calibrate, charbonnier, optimisers, orthogonal,
                                       restore, settle_, start_)


class SmallNet(dblr_fast.DBLRNet):
    """Two blocks of eight channels, so that steps take milliseconds."""

    def __init__(self):
        super().__init__(width=8, blocks=2)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder with one clip of pictures: a bright square over noise, moving."""
    root = tmp_path_factory.mktemp("clips")
    (root / "square").mkdir()
    noise = np.random.default_rng(0).integers(0, 120, (150, 180), dtype=np.uint8)
    noise = cv2.GaussianBlur(noise, (0, 0), 1.5)
    for i in range(12):
        picture = noise.copy()
        picture[40:90, 30 + 4 * i:80 + 4 * i] = 220
        cv2.imwrite(str(root / "square" / f"{i:03d}.png"), picture)
    return root


@pytest.fixture(scope="module")
def pool(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    first_weights.main(["pool", "--source", str(clips), "--pool", str(folder), "--rounds", "2",
                        "--count", "5"])
    return folder


def test_pool_batches(pool):
    source = Pool(pool)
    assert len(source) == 10
    blurred, sharp = source.batch(7, 48, np.random.default_rng(1))
    assert blurred.shape == (7, 5, 48, 48) and sharp.shape == (7, 1, 48, 48)
    assert blurred.dtype == np.float32 and 0 <= blurred.min() and blurred.max() <= 1
    again, _ = Pool(pool).batch(7, 48, np.random.default_rng(1))
    assert np.array_equal(blurred, again)


def test_a_pool_is_made_from_a_pack(clips, tmp_path):
    first_weights.main(["pack", "--source", str(clips), "--out", str(tmp_path / "pack"), "--runs", "2"])
    first_weights.main(["pool", "--source", str(tmp_path / "pack"), "--pool", str(tmp_path / "pool"),
                        "--rounds", "1", "--count", "4"])
    assert len(Pool(tmp_path / "pool")) == 4


def test_empty_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="found none"):
        Pool(tmp_path)
    with pytest.raises(ValueError, match="found none"):
        first_weights.main(["pool", "--source", str(tmp_path), "--pool", str(tmp_path / "out")])


def test_train_resume_and_ship(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SmallNet", SmallNet)
    validation = tmp_path / "validation.npz"
    np.savez(validation, all=Pool(pool).shards[0][:2, :, :64, :64])
    command = ["train", "--pool", str(pool), "--run", str(tmp_path / "run"), "--minutes", "60",
               "--stages", "0:1:2x48", "--ship-after", "0", "--model", f"{__name__}:SmallNet",
               "--weights", str(tmp_path / "w.safetensors"),
               "--validation", str(validation)]
    first_weights.main([*command, "--steps", "3"])
    first = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert first["step"] == 3
    first_weights.main([*command, "--steps", "5"])
    second = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert second["step"] == 5 and second["begin"] == first["begin"]
    assert not torch.equal(first["model"]["conv31.conv.weight"], second["model"]["conv31.conv.weight"])
    for name in ("conv35.weight", "blocks.1.first.conv.weight"):  # take no part yet
        assert torch.equal(first["model"][name], second["model"][name])
    for name, value in first["model"].items():
        if "running" in name:
            assert torch.equal(value, second["model"][name])
    model = dblr_fast.load_model(tmp_path / "w.safetensors")
    assert torch.equal(model.conv31.conv.weight, second["average"]["conv31.conv.weight"])
    # Going on from the file: what it holds is kept, and a block that was silent writes, but not into the picture.
    first_weights.main([*command, "--start", str(tmp_path / "w.safetensors"), "--run", str(tmp_path / "on"),
                        "--stages", "0:2:2x48", "--steps", "0", "--weights", str(tmp_path / "on.safetensors")])
    begun = torch.load(tmp_path / "on" / "checkpoint.pt", weights_only=True)["model"]
    woken = "blocks.1.second.bn.weight"
    assert not model.state_dict()[woken].any() and begun[woken][1:].all() and begun[woken][0] == 0
    history = json.loads(read_metadata(tmp_path / "on.safetensors")["training"])
    assert history["steps"] == 0 and history["start"]["steps"] == 5
    for name, value in model.state_dict().items():
        assert name == woken or torch.equal(begun[name], value)
    metadata = read_metadata(tmp_path / "w.safetensors")
    assert json.loads(metadata["training"])["steps"] == 5 and "all" in json.loads(metadata["scores"])


def started(depth=1):
    """A small network as training starts it, its statistics, and a batch to learn from."""
    torch.manual_seed(0)
    model = start_(SmallNet(), depth)
    x = torch.rand(2, 5, 32, 32)
    calibrate(model, [x, torch.rand(2, 5, 32, 32)])
    return model, x


def learn(model, x, depth, steps=6):
    flat, steppers = FlatResponse(model), optimisers(model, 1e-3, 0.01)
    for _ in range(steps):
        charbonnier(restore(model, x, depth), x[:, 1:2], 0.01, border=4).mean().backward()
        flat.project_gradients()
        for stepper in steppers:
            stepper.step()
        flat.restore()
        for stepper in steppers:
            stepper.zero_grad(set_to_none=True)


@torch.no_grad()
def test_training_starts_from_the_identity():
    for depth in (0, 1, 2):
        model, x = started(depth)
        for part in (depth, ALL):
            centre = x[:, 2:3]  # exact but for the rounding of Winograd's transforms, in L2 and the tail
            assert_close_as_eager("identity", restore(model, x, part).detach(), centre, centre.double(), winograd=3)


@pytest.mark.parametrize("tail_skip", [True, False])
def test_the_whole_network_is_what_was_trained(tail_skip):
    torch.manual_seed(0)
    model = start_(dblr_fast.DBLRNet(width=8, blocks=3, tail_skip=tail_skip), 1)
    x = torch.rand(2, 5, 32, 32)
    calibrate(model, [x])
    learn(model, x, 1)
    learn(model, x, 2)
    with torch.no_grad():
        part = restore(model, x, 2)
        assert float((part - x[:, 2:3]).abs().max()) > 1e-3
        assert torch.allclose(restore(model, x), part.clamp(min=0), rtol=0, atol=1e-6)
    before = [p.detach().clone() for p in (model.blocks[2].second.bn.weight, model.conv34.weight)]
    learn(model, x, ALL)
    for p, old in zip((model.blocks[2].second.bn.weight, model.conv34.weight), before):
        assert not torch.equal(p, old)


@pytest.mark.parametrize("depth", [1, ALL])
@torch.no_grad()
def test_brightness_is_held(depth):
    model, x = started()
    with torch.enable_grad():
        learn(model, x, depth)
    assert float((restore(model, x, depth) - x[:, 2:3]).abs().max()) > 1e-4  # it has learned something,
    inside = (slice(None), slice(None), slice(20, -20), slice(20, -20))
    black, dark, bright = [(restore(model, torch.full((1, 5, 48, 48), level), depth) - level)[inside]
                           for level in (0.0, 0.25, 0.75)]
    assert float((dark - bright).abs().max()) < 1e-4  # and treats dark and bright alike,
    if depth is not ALL:  # L33 and L34 end in ReLU
        assert float((black - dark).abs().max()) < 1e-4  # down to black


@pytest.mark.parametrize("tail_skip", [True, False])
@torch.no_grad()
def test_settled_weights_compute_the_same_and_pass_the_picture_as_it_is(tail_skip):
    """Down to black, which ReLU cuts off after a negative bias, and through every block."""
    torch.manual_seed(0)
    model = start_(dblr_fast.DBLRNet(width=8, blocks=2, tail_skip=tail_skip), 2)
    x = 0.25 + 0.5 * torch.rand(1, 5, 48, 48)
    calibrate(model, [x])
    model.conv1.bias[0], model.conv2.bias[0] = -0.02, -0.01
    for i, block in enumerate(model.blocks):
        block.second.bn.bias[0] = 0.01 * (i + 1)
        block.first.bn.bias += 0.1 * torch.rand(8)  # features of their own, where a picture is flat too
        block.second.conv.weight[0] = 0.01 * torch.randn_like(block.second.conv.weight[0])
        block.second.bn.weight[0] = 0.1
    model.conv32.bn.bias[0] = 0.1
    inside = (slice(None), slice(None), slice(20, -20), slice(20, -20))
    before, black = model(x), torch.zeros(1, 5, 48, 48)
    flat = [model(torch.full_like(black, level))[inside] - level for level in (0.25, 0.75)]
    assert torch.allclose(flat[0], flat[1], rtol=0, atol=1e-5)
    settle_(model)
    assert torch.allclose(model(x)[inside], before[inside], rtol=0, atol=1e-5)
    assert torch.allclose(model(black)[inside], flat[0], rtol=0, atol=1e-5)
    seen = []
    hooks = [block.register_forward_hook(lambda _, i, y: seen.append(y[0, 0, 24, 24])) for block in model.blocks]
    restore(model, torch.full_like(black, 0.25), 2)  # block by block
    assert torch.allclose(torch.stack(seen), torch.tensor(0.25), rtol=0, atol=1e-6)
    for hook in hooks:
        hook.remove()


def test_steps_of_kernels_are_orthogonal():
    torch.manual_seed(0)
    for shape in ((3, 8, 72), (2, 72, 8)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert 0.6 < float(values.min()) and float(values.max()) < 1.3
    kernel = torch.nn.Parameter(torch.randn(4, 3, 3, 3))
    before = kernel.detach().clone()
    kernel.grad = torch.randn(4, 3, 3, 3)
    kernel.grad -= FlatResponse.mean(kernel.grad)
    kernel.grad[0] = 0
    Muon([kernel], lr=0.1).step()
    step = kernel.detach() - before
    assert 0.06 < float(torch.linalg.matrix_norm(step.flatten(1), 2)) < 0.13
    # What the gradient leaves alone the step leaves alone.
    assert float(FlatResponse.mean(step).abs().max()) < 1e-6 and float(step[0].abs().max()) < 1e-6


def test_stages():
    assert first_weights.parse_stages("0:2:4x64,0.5:whole:2x96") == [(0.0, 2, 4, 64), (0.5, ALL, 2, 96)]
    with pytest.raises(ValueError, match="order"):
        first_weights.parse_stages("0.5:2:4x64")


def test_calibration_measures_what_evaluation_then_uses():
    torch.manual_seed(1)
    model = dblr_fast.DBLRNet(width=8, blocks=1, init="paper")
    batch = torch.rand(4, 5, 40, 40)
    calibrate(model, [batch, batch])
    assert not model.training and model.conv31.bn.momentum == 0.1
    expected = model.train()(batch)
    # Batch statistics divide by n, running ones by n - 1: alike for 6400 values.
    assert torch.allclose(model.eval()(batch), expected, atol=1e-3 * float(expected.abs().max()))
