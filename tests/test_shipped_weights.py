"""The weights that come with the package do what their metadata says, on pictures made here.

The full scores, on real clips, are measured by benchmarks/quality.py; this is the part that needs no data.
"""

import json

import numpy as np
import pytest
import torch

import dblr_fast
from dblr_fast.checkpoint import FOLDER, find, read_metadata
from dblr_fast.data import BlurSettings, synthesize_window, window_rng
from dblr_fast.evaluation import psnr

cv2 = pytest.importorskip("cv2", reason="blur synthesis needs OpenCV: pip install opencv-python-headless")


@pytest.fixture(scope="module")
def model():
    return dblr_fast.load_model("default")


@torch.no_grad()
def restore(model, window):
    """(T, H, W) float32 array -> (H, W) tensor as it would be written: clamped and rounded to bytes."""
    restored = model(torch.from_numpy(np.ascontiguousarray(window))[None])[0, 0]
    return (restored.clamp(0, 1) * 255).round() / 255


def drawing(seed, height=200, width=220):
    """Edges, lines and lettering over soft shading, smoothed as a camera would."""
    rng = np.random.default_rng(seed)
    shading = rng.integers(60, 200, (5, 6), dtype=np.uint8)
    picture = cv2.resize(shading, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(14):
        a, b = (tuple(int(v) for v in rng.integers(0, (width, height))) for _ in range(2))
        line, disc, text = (int(v) for v in rng.integers(0, 256, 3))
        cv2.line(picture, a, b, line, int(rng.integers(1, 5)), cv2.LINE_AA)
        cv2.circle(picture, a, int(rng.integers(4, 30)), disc, -1, cv2.LINE_AA)
        cv2.putText(picture, "deblur", b, cv2.FONT_HERSHEY_SIMPLEX, 0.7, text, 1, cv2.LINE_AA)
    return cv2.GaussianBlur(picture.astype(np.float32) / np.float32(255), (0, 0), 0.6)


def test_metadata(model):
    metadata = read_metadata(find("default"))
    assert metadata["format"] == "dblr_fast" and metadata["format_version"] == "1"
    assert (metadata["variant"], metadata["frames"], metadata["tail_skip"]) == ("3d", "5", "true")
    assert (metadata["width"], metadata["blocks"]) == ("64", "14")
    assert (metadata["luma_matrix"], metadata["luma_range"]) == ("bt601", "full")
    assert metadata["licence"] == "Apache-2.0"
    assert "synthetic motion blur" in metadata["trained_on"]
    assert json.loads(metadata["training"])["steps"] > 0
    assert json.loads(metadata["scores"])
    assert sum(p.numel() for p in model.parameters()) == 1_879_937


def test_the_file_is_small_and_single_precision():
    assert (FOLDER / "dblrnet.safetensors").stat().st_size < 9e6
    state = dblr_fast.load_model().state_dict()
    assert all(t.dtype == torch.float32 for name, t in state.items() if "num_" not in name)


def test_blurred_pictures_gain(model):
    settings = BlurSettings(size=(128, 128), length=(4.0, 8.0), sharp_share=0.0, noise=0.0, jpeg_share=0.0)
    gains = []
    for seed in range(4):
        blurred, sharp = synthesize_window(drawing(seed)[None], window_rng(100, seed), settings)
        gains.append(float(psnr(restore(model, blurred), torch.from_numpy(sharp))
                           - psnr(torch.from_numpy(blurred[2]), torch.from_numpy(sharp))))
    assert np.mean(gains) > 0.6 and min(gains) > 0, gains


def test_sharp_pictures_are_left_alone(model):
    settings = BlurSettings(size=(128, 128), sharp_share=1.0, noise=0.0, jpeg_share=0.0)
    kept = []
    for seed in range(4):
        window, sharp = synthesize_window(drawing(seed)[None], window_rng(200, seed), settings)
        kept.append(float(psnr(restore(model, window), torch.from_numpy(sharp))))
    assert np.mean(kept) >= 40, kept


@pytest.mark.parametrize("level", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_flat_pictures_keep_their_brightness(model, level):
    window = np.full((5, 96, 96), level, np.float32)
    with torch.no_grad():
        restored = model(torch.from_numpy(window)[None])[0, 0]
    inside = restored[36:-36, 36:-36]
    assert float((inside - level).abs().max()) < 0.5 / 255  # black, too
    assert float(inside.max() - inside.min()) < 1e-4  # no pattern
