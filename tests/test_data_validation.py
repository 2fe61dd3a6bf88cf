"""Validation windows: fixed, in colour, of footage that is not trained on."""

import cv2
import numpy as np
import pytest
import torch
from clips import make_clip
from data_cases import CLEAN, colours, dvd, gopro, kitti, settings, texture, write_pictures

from dblr_fast.colour import WEIGHTS, luma_of
from dblr_fast.data import validation_set
from dblr_fast.data.reading import read_bgr
from dblr_fast.errors import Refusal


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    root = tmp_path_factory.mktemp("sharp")
    write_pictures(root / "a", count=9, size=(90, 120))
    make_clip(root / "b.mp4", frames=40, size=(96, 64))
    return root


def on_footage(footage, **changes):
    return settings(footage, validation_paths=(str(footage),),
                    **{"validation_windows": 6, "validation_size": 40, **changes})


@pytest.mark.parametrize("frames", [1, 5, 11])
def test_windows(footage, frames):
    windows = validation_set(on_footage(footage), frames)
    assert len(windows) == 6
    for window in windows:
        assert set(window) == {"name", "blurred", "blurred_rgb", "sharp_rgb"}
        assert window["blurred"].shape == (frames, 40, 40)
        assert window["blurred_rgb"].shape == window["sharp_rgb"].shape == (3, 40, 40)
        for part in (window[key] for key in ("blurred", "blurred_rgb", "sharp_rgb")):
            assert part.dtype == torch.float32 and 0 <= part.min() and part.max() <= 1
        luma = luma_of(window["blurred_rgb"].movedim(0, -1), WEIGHTS["bt601"])
        assert torch.allclose(window["blurred"][frames // 2], luma, rtol=0, atol=1e-6)
        assert not torch.equal(window["blurred_rgb"], window["sharp_rgb"])
    assert [w["name"] for w in windows] == ["a frame 1", "a frame 4", "a frame 7", "b.mp4 frame 6", "b.mp4 frame 20",
                                            "b.mp4 frame 33"]


def test_they_are_fixed(footage):
    """The same at every call and for every number of epochs; not the caller's to change."""
    first, second = (validation_set(on_footage(footage, blur_flow_share=0.6), 3) for _ in range(2))
    first[0]["blurred"].zero_()
    for a, b in zip(first, second):
        assert a["name"] == b["name"] and all(torch.equal(a[k], b[k]) for k in a if k != "name")


def test_none_is_sharp_and_lengths_are_spread(footage):
    """Whatever the share of sharp windows in training; from slight to strong."""
    windows = validation_set(on_footage(footage, **{**CLEAN, "blur_sharp_share": 1.0}, validation_windows=8), 3)
    errors = sorted(float((w["blurred_rgb"] - w["sharp_rgb"]).square().mean()) for w in windows)
    assert errors[0] > 0 and errors[-1] > 10 * errors[0]


def test_colours_are_those_of_the_footage(tmp_path):
    """Red is red: of pictures, and of a video."""
    def red(height, width, seed):
        picture = np.zeros((height, width, 3), np.uint8)
        picture[..., 2] = 128 + texture(height, width, seed) // 2  # OpenCV writes B, G, R
        return picture

    write_pictures(tmp_path / "clip", make=red, suffix=".png", size=(80, 90))
    config = on_footage(tmp_path, blur_length=(0.0, 0.0), **CLEAN, blur_responses=("linear",), validation_windows=1)
    window = validation_set(config, 3)[0]
    assert window["sharp_rgb"][0].min() > 0.4 and window["sharp_rgb"][1:].max() == 0
    assert torch.allclose(window["blurred_rgb"], window["sharp_rgb"], rtol=0, atol=1.01 / 255)


def test_pairs_are_the_files_pictures(tmp_path):
    root = dvd(tmp_path, ("IMG_0001", "IMG_0030"), count=7)
    for n in range(7):
        cv2.imwrite(str(root / f"quantitative_datasets/IMG_0030/input/{n:05d}.jpg"), colours(60, 80, n))
    windows = validation_set(settings(root, validation_windows=3, validation_size=0), 5)
    assert [w["name"] for w in windows] == ["IMG_0030 frame 1", "IMG_0030 frame 3", "IMG_0030 frame 5"]
    base = root / "quantitative_datasets" / "IMG_0030"
    for window, n in zip(windows, (1, 3, 5)):
        for key, part in (("blurred_rgb", "input"), ("sharp_rgb", "GT")):
            wanted = read_bgr(str(base / part / f"{n:05d}.jpg"))[..., ::-1]
            assert np.array_equal((255 * window[key]).round().byte().movedim(0, -1).numpy(), wanted)
        frames = [read_bgr(str(base / "input" / f"{min(max(n + d, 0), 6):05d}.jpg")) for d in range(-2, 3)]
        wanted = np.stack(frames) @ np.array([0.114, 0.587, 0.299]) / 255
        assert np.allclose(window["blurred"].numpy(), wanted, rtol=0, atol=1e-5)
    cut = validation_set(settings(root, validation_windows=3, validation_size=20), 5)[1]
    assert torch.equal(cut["sharp_rgb"], windows[1]["sharp_rgb"][:, 20:40, 30:50])


def test_where_they_come_from(tmp_path):
    """The test split; else the clips held out; else the folders given."""
    root = gopro(tmp_path / "gopro")

    def clips(*paths, **changes):
        return [w["name"].split(" frame")[0] for w in validation_set(
            settings(*paths, validation_size=32, **{"validation_windows": 4, **changes}), 3)]

    assert set(clips(root)) == {"GOPR0384_11_00"}
    for name in "abc":
        write_pictures(tmp_path / "sharp" / "deep" / name)
    assert set(clips(tmp_path / "sharp")) == {"deep_c"} and set(clips(tmp_path / "sharp", held_out=2)) == {
        "deep_b", "deep_c"}
    assert set(clips(tmp_path / "sharp", root)) == {"deep_c", "GOPR0384_11_00"}
    assert set(clips(root, validation_paths=(str(tmp_path / "sharp" / "deep" / "a"),))) == {"a"}
    assert len(clips(kitti(tmp_path / "kitti"), held_out=2)) == 4
    assert clips(tmp_path / "sharp", held_out=2, validation_windows=1) == ["deep_c"]
    one = validation_set(settings(tmp_path / "sharp" / "deep" / "a", validation_windows=2), 3)
    assert [w["name"] for w in one] == ["a frame 6", "a frame 7"]
    with pytest.raises(Refusal, match="nothing to validate on, as no test split was found and data.held_out keeps no "
                                      "clip"):
        clips(tmp_path / "sharp", held_out=0)


def test_large_windows_of_small_footage(footage):
    """A window is as large as the picture allows; 0 takes all of it."""
    for side in (500, 0):
        shapes = {tuple(w["sharp_rgb"].shape) for w in validation_set(
            on_footage(footage, validation_size=side, blur_full_size_share=1.0, validation_windows=2), 3)}
        assert shapes == {(3, 90, 120), (3, 64, 96)}


def test_progress_and_refusals(footage):
    seen = []
    validation_set(on_footage(footage), 3, lambda done, total: seen.append((done, total)))
    assert seen == [(n, 6) for n in range(1, 7)]
    with pytest.raises(Refusal, match="odd number of frames; got 2"):
        validation_set(on_footage(footage), 2)
    with pytest.raises(Refusal, match="validation_windows must be a whole number from 1 on; got 0"):
        validation_set(on_footage(footage, validation_windows=0), 3)


def test_damage_is_refused(tmp_path):
    path = write_pictures(tmp_path / "clip", count=3)
    (path / "00001.png").write_bytes(b"no picture")
    with pytest.raises(Refusal, match="00001.png is not a picture that can be read"):
        validation_set(on_footage(path, validation_windows=3), 1)
    cv2.imwrite(str(path / "00001.png"), colours(60, 84))
    with pytest.raises(Refusal, match="00001.png is 84x60 and the first picture of its folder 80x60"):
        validation_set(on_footage(path, validation_windows=3), 1)
