"""Folders of pictures, to and from pictures and video."""

import shutil
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from clips import Passing, brighter, decoded, make_clip, refused, restore, stamps


@pytest.fixture
def clip(tmp_path):
    return make_clip(tmp_path / "clip.mp4", 6)


def write_pictures(folder, count=5, shape=(48, 64, 3), dtype=np.uint8, suffix="png", first=1):
    folder.mkdir()
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, np.iinfo(dtype).max, shape, endpoint=True, dtype=dtype) for _ in range(count)]
    for i, array in enumerate(arrays):
        assert cv2.imwrite(str(folder / f"f{first + i}.{suffix}"), array)
    return arrays


@pytest.mark.parametrize("shape", [(48, 64), (48, 64, 3), (48, 64, 4), (7, 5, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pictures_to_pictures(tmp_path, shape, dtype):
    arrays = write_pictures(tmp_path / "in", 12, shape, dtype)
    result = restore(tmp_path / "in", tmp_path / "out")
    assert result.frames == 12 and result.warnings == ()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(f"f{i}.png" for i in range(1, 13))
    for i, array in enumerate(arrays):  # natural order: f2 before f10
        written = cv2.imread(str(tmp_path / "out" / f"f{i + 1}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(written, array)


def test_colour_pictures_change_in_luma_alone(tmp_path):
    (array,) = write_pictures(tmp_path / "in", 1)
    restore(tmp_path / "in", tmp_path / "out", Passing(brighter))
    out = cv2.imread(str(tmp_path / "out" / "f1.png"))
    np.testing.assert_array_equal(out, np.clip(np.rint(array + 0.05 * 255), 0, 255))


def test_the_order_of_pictures_is_natural(tmp_path):
    (tmp_path / "in").mkdir()
    for i in (1, 2, 9, 10, 11, 100):
        cv2.imwrite(str(tmp_path / "in" / f"x{i}.png"), np.full((8, 8), i, np.uint8))
    seen = []
    engine = Passing(lambda y: seen.append(round(y[0, 0, 0, 0].item() * 255)) or y)
    restore(tmp_path / "in", tmp_path / "out", engine)
    assert seen == [1, 2, 9, 10, 11, 100]


def test_jpegs_become_pngs_of_what_was_decoded(tmp_path):
    write_pictures(tmp_path / "in", 2, suffix="jpg")
    restore(tmp_path / "in", tmp_path / "out")
    written, read = (cv2.imread(str(tmp_path / name)) for name in ("out/f1.png", "in/f1.jpg"))
    np.testing.assert_array_equal(written, read)


def test_pictures_that_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    refused("holds no pictures", tmp_path / "empty", tmp_path / "out")
    write_pictures(tmp_path / "sizes", 2)
    cv2.imwrite(str(tmp_path / "sizes" / "f9.png"), np.zeros((10, 10, 3), np.uint8))
    refused("is 10x10, the first picture is 64x48", tmp_path / "sizes", tmp_path / "out")
    write_pictures(tmp_path / "broken", 2)
    (tmp_path / "broken" / "f2.png").write_text("no picture")
    refused("f2.png is not a picture", tmp_path / "broken", tmp_path / "out")
    write_pictures(tmp_path / "twins", 1)
    shutil.copy(tmp_path / "twins" / "f1.png", tmp_path / "twins" / "f1.bmp")
    refused("which would become one file", tmp_path / "twins", tmp_path / "out")
    write_pictures(tmp_path / "in", 1)
    refused("is the input itself", tmp_path / "in", tmp_path / "in", overwrite=True)
    (tmp_path / "file").write_text("")
    refused("has no suffix and so would be a folder", tmp_path / "in", tmp_path / "file", overwrite=True)


def test_a_folder_is_overwritten_file_by_file(tmp_path):
    write_pictures(tmp_path / "in", 2)
    (tmp_path / "out").mkdir()
    restore(tmp_path / "in", tmp_path / "out")  # an empty folder is as good as none
    (tmp_path / "out" / "notes.txt").write_text("mine")
    refused("exists; --overwrite", tmp_path / "in", tmp_path / "out")
    restore(tmp_path / "in", tmp_path / "out", overwrite=True)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["f1.png", "f2.png", "notes.txt"]


def test_video_to_pictures(tmp_path):
    source = make_clip(tmp_path / "a.mkv", 4, name="yuv444p", codec="ffv1", colorspace=1, color_range=1)
    result = restore(source, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"{i:08}.png" for i in range(4)]
    assert any("no sound" in warning for warning in result.warnings)
    _, (y, u, v), _ = decoded(source)[1]
    y, u, v = (y - 16.0) / 219, (u - 128.0) / 224, (v - 128.0) / 224
    r, b = y + 1.5748 * v, y + 1.8556 * u
    g = (y - 0.2126 * r - 0.0722 * b) / 0.7152
    expected = np.clip(np.stack([b, g, r], -1), 0, 1) * 255
    assert np.abs(cv2.imread(str(tmp_path / "out" / "00000001.png")) - expected).max() <= 2


def test_deep_and_turned_video_to_pictures(tmp_path):
    source = make_clip(tmp_path / "a.mp4", 2, name="yuv420p10le", rotation=90)
    restore(source, tmp_path / "out")
    array = cv2.imread(str(tmp_path / "out" / "00000000.png"), cv2.IMREAD_UNCHANGED)
    assert array.dtype == np.uint16 and array.shape == (64, 48, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pictures_to_lossless_video(tmp_path, dtype):
    arrays = write_pictures(tmp_path / "in", 3, dtype=dtype)
    restore(tmp_path / "in", tmp_path / "b.mkv", codec="ffv1", fps=25)
    for array, (_, parts, frame) in zip(arrays, decoded(tmp_path / "b.mkv")):
        assert frame.format.is_rgb
        np.testing.assert_array_equal(np.stack(parts[2::-1], -1), array)
    assert stamps(tmp_path / "b.mkv") == [0, Fraction(40, 1000), Fraction(80, 1000)]


def test_pictures_to_h264(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(5):
        array = np.full((48, 64, 3), (200, 100, 40 + 10 * i), np.uint8)
        cv2.imwrite(str(tmp_path / "in" / f"{i}.png"), array)
    result = restore(tmp_path / "in", tmp_path / "b.mp4", crf=1)
    with av.open(str(tmp_path / "b.mp4")) as file:
        assert file.streams.video[0].average_rate == 30
    _, parts, frame = decoded(tmp_path / "b.mp4")[0]
    assert (result.frames, frame.format.name, frame.colorspace, frame.color_range) == (5, "yuv420p", 1, 1)
    assert abs(parts[0].mean() - (16 + 219 * (0.2126 * 40 + 0.7152 * 100 + 0.0722 * 200) / 255)) < 2
