"""The training script: a pool, a pack, a few steps, resuming, and the file it ships."""

import json
import sys

import numpy as np
import pytest
import torch

cv2 = pytest.importorskip("cv2", reason="training needs OpenCV: pip install opencv-python-headless")

import dblr_fast
from dblr_fast.checkpoint import read_metadata
from dblr_fast.initialization import identity_
from dblr_fast.training import first_weights
from dblr_fast.training.pool import Pool
from dblr_fast.training.recipe import FlatResponse, calibrate, charbonnier


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
    monkeypatch.setattr(first_weights, "STAGES", ((0.0, 2, 48),))
    monkeypatch.setattr(sys.modules[__name__], "SmallNet", SmallNet)
    validation = tmp_path / "validation.npz"
    np.savez(validation, all=Pool(pool).shards[0][:2, :, :64, :64])
    command = ["train", "--pool", str(pool), "--run", str(tmp_path / "run"), "--minutes", "60",
               "--ship-after", "0", "--model", f"{__name__}:SmallNet",
               "--weights", str(tmp_path / "w.safetensors"),
               "--validation", str(validation)]
    first_weights.main([*command, "--steps", "3"])
    first = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert first["step"] == 3
    first_weights.main([*command, "--steps", "5"])
    second = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert second["step"] == 5 and second["begin"] == first["begin"]
    assert not torch.equal(first["model"]["conv35.weight"], second["model"]["conv35.weight"])
    for name, value in first["model"].items():
        if "running" in name:
            assert torch.equal(value, second["model"][name])
    model = dblr_fast.load_model(tmp_path / "w.safetensors")
    assert torch.equal(model.conv35.weight, second["average"]["conv35.weight"])
    metadata = read_metadata(tmp_path / "w.safetensors")
    assert json.loads(metadata["training"])["steps"] == 5 and "all" in json.loads(metadata["scores"])


def test_brightness_is_held():
    torch.manual_seed(0)
    model = identity_(SmallNet())
    FlatResponse.clear(model)
    calibrate(model, [torch.rand(2, 5, 32, 32)])
    flat = FlatResponse(model)
    optimiser = torch.optim.SGD([p for n, p in model.named_parameters() if not n.endswith("bias")], lr=0.02)
    x = torch.rand(2, 5, 32, 32)
    for _ in range(4):
        optimiser.zero_grad()
        charbonnier(model(x), x[:, 1:2], 0.01, border=4).mean().backward()
        flat.project_gradients()
        optimiser.step()
        flat.restore()
    assert float((model(x) - x[:, 2:3]).detach().abs().max()) > 1e-4  # it has learned something,
    grey = torch.full((1, 5, 32, 32), 0.5)
    inside = (slice(None), slice(None), slice(13, -13), slice(13, -13))
    assert float((model(grey) - 0.5)[inside].detach().abs().max()) < 2e-3  # and grey stays grey


def test_calibration_measures_what_evaluation_then_uses():
    torch.manual_seed(1)
    model = dblr_fast.DBLRNet(width=8, blocks=1, init="paper")
    batch = torch.rand(4, 5, 40, 40)
    calibrate(model, [batch, batch])
    assert not model.training and model.conv31.bn.momentum == 0.1
    expected = model.train()(batch)
    # Batch statistics divide by n, running ones by n - 1: alike for 6400 values.
    assert torch.allclose(model.eval()(batch), expected, atol=1e-3 * float(expected.abs().max()))
