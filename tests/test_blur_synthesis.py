"""Blur synthesis and clip reading: exactness where it can be exact, measured behaviour elsewhere."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from dblr_fast.data import BlurSettings, iter_luma, load_luma_clip, synthesize_window, window_rng

cv2 = pytest.importorskip("cv2", reason="blur synthesis needs OpenCV: pip install opencv-python-headless")

CLEAN = BlurSettings(size=(48, 56), sharp_share=0.0, flow_share=0.0, noise=0.0, jpeg_share=0.0)


def textured(height=160, width=200, seed=0):
    """A picture with edges and texture at several scales."""
    rng = np.random.default_rng(seed)
    picture = sum(cv2.resize(rng.random((height // s + 1, width // s + 1)), (width, height),
                             interpolation=cv2.INTER_CUBIC) for s in (4, 12, 40)) / 3
    return np.clip(picture, 0, 1).astype(np.float32)


def mse(a, b):
    return float(((a.astype(np.float64) - b) ** 2).mean())


def test_shapes_types_and_range():
    frames = textured()[None]
    for count in (1, 3, 5, 9):
        settings = replace(BlurSettings(), frames=count, size=(40, 52))
        blurred, sharp = synthesize_window(frames, window_rng(1, count), settings)
        assert blurred.shape == (count, 40, 52) and sharp.shape == (40, 52)
        assert blurred.dtype == sharp.dtype == np.float32
        assert 0 <= blurred.min() and blurred.max() <= 1


def test_one_seed_one_window():
    frames = np.stack([np.roll(textured(), i, 1) for i in range(7)])
    settings = replace(BlurSettings(), size=(48, 48), flow_share=1.0)
    first = synthesize_window(frames, window_rng(3, 4), settings)
    synthesize_window(frames, window_rng(9, 9), settings)
    again = synthesize_window(frames, window_rng(3, 4), settings)
    other = synthesize_window(frames, window_rng(3, 5), settings)
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_sharp_centre_is_the_picture_itself():
    picture = textured()
    blurred, sharp = synthesize_window(picture[None], window_rng(5), CLEAN, origin=(30, 40))
    assert np.array_equal(sharp, picture[30:78, 40:96])
    assert mse(blurred[2], sharp) > 0


def test_a_sharp_window_leaves_its_centre_alone():
    settings = replace(CLEAN, sharp_share=1.0)
    for seed in range(5):
        blurred, sharp = synthesize_window(textured()[None], window_rng(seed), settings)
        assert np.array_equal(blurred[2], sharp)
        assert mse(blurred[1], sharp) > 0  # the camera moves on between the frames all the same


def test_no_length_no_blur():
    settings = replace(CLEAN, length=(0.0, 0.0), responses=("linear",))
    blurred, sharp = synthesize_window(textured()[None], window_rng(2), settings)
    assert np.abs(blurred - sharp).max() < 2e-6


def test_longer_is_blurrier():
    errors = []
    for length in (2.0, 6.0, 14.0, 30.0):
        settings = replace(CLEAN, length=(length, length))
        pairs = [synthesize_window(textured(seed=s)[None], window_rng(8, s), settings) for s in range(12)]
        errors.append(np.mean([mse(b[2], s) for b, s in pairs]))
    assert errors == sorted(errors)


@pytest.mark.parametrize("length", [3.0, 10.0, 25.0])
def test_the_length_asked_for_is_the_length_made(length):
    from dblr_fast.data.blur import _apply, _homographies, _motion, _path_length

    points = np.array([[0, 0], [100, 0], [0, 100], [100, 100], [50, 50]], float)
    for seed in range(10):
        path, axis, scale = _motion(window_rng(seed), 2.5), np.array([20.0, 170.0]), 1.0
        for _ in range(3):
            scale *= length / _path_length(path, axis, scale, 0.7, points)
        moved = _apply(_homographies(path(np.linspace(-0.35, 0.35, 400)) * scale, axis), points)
        real = np.linalg.norm(np.diff(moved, axis=0), axis=2).sum(0).mean()
        assert real == pytest.approx(length, rel=0.1)


def test_the_trajectory_starts_at_the_sharp_frame_and_is_smooth():
    from dblr_fast.data.blur import _homographies, _motion

    for seed in range(10):
        path = _motion(window_rng(seed), 2.5)
        assert np.allclose(_homographies(path(np.zeros(1)), (30, 40))[0], np.eye(3), atol=1e-12)
        steps = np.abs(np.diff(path(np.linspace(-2.5, 2.5, 2001)), axis=0)).max(0)
        whole = np.ptp(path(np.linspace(-2.5, 2.5, 2001)), axis=0)
        assert (steps < 0.02 * whole + 1e-9).all()


def test_every_response_curve_has_its_inverse():
    from dblr_fast.data.blur import RESPONSES, _response_tables, _through

    x = np.linspace(0, 1, 1001).astype(np.float32)
    for kind in RESPONSES:
        to_light, to_luma = _response_tables(kind, window_rng(4))
        assert (np.diff(to_light) > 0).all() and to_light[0] == 0 and to_light[-1] == pytest.approx(1)
        back = _through(to_luma, _through(to_light, x))
        # Near black a gamma curve is steep: an eighth of a grey level there, far less elsewhere.
        assert np.abs(back - x)[x > 0.05].max() < 5e-4 and np.abs(back - x).max() < 2e-2


def test_light_is_averaged_before_the_response():
    # Black and white stripes blurred over many periods: half the light is far brighter than half the luma.
    stripes = (np.indices((300, 300)).sum(0) // 2 % 2).astype(np.float32)
    settings = replace(CLEAN, length=(30.0, 30.0), subframes=(40, 80))
    means = {}
    for kind in ("linear", "srgb"):
        chosen = replace(settings, responses=(kind,))
        windows = [synthesize_window(stripes[None], window_rng(s), chosen)[0] for s in range(6)]
        means[kind] = np.mean([window[2].mean() for window in windows])
    assert means["linear"] == pytest.approx(0.5, abs=0.03)
    assert means["srgb"] == pytest.approx(0.7354, abs=0.05)  # the sRGB value of half the light


def test_blur_keeps_a_flat_picture_flat():
    flat = np.full((1, 150, 150), 0.4, np.float32)
    for seed in range(6):
        blurred, sharp = synthesize_window(flat, window_rng(seed), CLEAN)
        assert np.abs(blurred - sharp).max() < 1e-3


def test_objects_move_along_the_flow():
    # A square moves 6 pixels a frame over a still background under a still camera.
    background = textured(160, 200, seed=1) * 0.4
    frames = []
    for i in range(7):
        frame = background.copy()
        frame[60:100, 60 + 6 * i:100 + 6 * i] = 0.6 + 0.4 * textured(40, 40, seed=2)
        frames.append(frame)
    settings = replace(CLEAN, length=(0.0, 0.0), size=(120, 160), flow_share=1.0, scene_speed=(1.0, 1.0),
                       exposure=(1.0, 1.0), responses=("linear",))
    blurred, sharp = synthesize_window(np.stack(frames), window_rng(3), settings, origin=(20, 20))
    error = (blurred[2] - sharp) ** 2
    on_square = error[38:82, 54:104].mean()
    far_away = error[:, :25].mean()
    assert on_square > 20 * far_away
    # The window's other frames show it where it was and will be.
    columns = [float((frame[50:70] > 0.55).mean(0) @ np.arange(160) / (frame[50:70] > 0.55).mean(0).sum())
               for frame in blurred]
    assert np.allclose(np.diff(columns), 6, atol=1.5)


def test_noise_and_jpeg_change_the_window_only():
    settings = replace(CLEAN, length=(5.0, 5.0), jpeg_share=1.0, jpeg_quality=(60, 60))
    clean, sharp = synthesize_window(textured()[None], window_rng(6), replace(settings, jpeg_share=0.0))
    coded, same = synthesize_window(textured()[None], window_rng(6), settings)
    assert np.array_equal(sharp, same)
    assert 0 < mse(clean[2], coded[2]) < 1e-3


@pytest.mark.parametrize("change, words", [
    ({"frames": 4}, "odd"), ({"length": (3.0, 1.0)}, "shortest"), ({"responses": ("sepia",)}, "responses")])
def test_settings_are_checked(change, words):
    with pytest.raises(ValueError, match=words):
        BlurSettings(**change)


def test_small_frames_are_refused():
    with pytest.raises(ValueError, match="H >= 48"):
        synthesize_window(np.zeros((1, 40, 100), np.float32), window_rng(0), CLEAN)
    with pytest.raises(ValueError, match="K, H, W"):
        synthesize_window(np.zeros((60, 100), np.float32), window_rng(0), CLEAN)


def write_video(path, planes, pixel_format, codec="ffv1"):
    av = pytest.importorskip("av", reason="video files need PyAV: pip install av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = planes[0].shape
        stream.pix_fmt = pixel_format
        for plane in planes:
            frame = av.VideoFrame(plane.shape[1], plane.shape[0], pixel_format)
            for target in frame.planes:
                target.update(np.full(target.buffer_size, 128, np.uint8))
            y = np.zeros((plane.shape[0], frame.planes[0].line_size), np.uint8)
            y[:, :plane.shape[1]] = plane
            frame.planes[0].update(y)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def test_video_luma_is_the_decoders_plane(tmp_path):
    rng = np.random.default_rng(0)
    planes = [rng.integers(0, 256, (34, 50), dtype=np.uint8) for _ in range(5)]
    write_video(tmp_path / "limited.mkv", planes, "yuv420p")
    clip = load_luma_clip(tmp_path / "limited.mkv")
    assert clip.dtype == np.float32 and clip.shape == (5, 34, 50)
    assert np.allclose(clip, (np.stack(planes).astype(np.float64) - 16) / 219, atol=1e-6)
    part = load_luma_clip(tmp_path / "limited.mkv", start=1, stop=4, step=2)
    assert np.array_equal(part, clip[1:4:2])
    eight = load_luma_clip(tmp_path / "limited.mkv", dtype=np.uint8)
    assert np.array_equal(eight, np.clip(np.rint(clip * 255), 0, 255).astype(np.uint8))


def test_full_range_video(tmp_path):
    planes = [np.arange(34 * 50, dtype=np.int64).reshape(34, 50).astype(np.uint8)] * 2
    write_video(tmp_path / "full.mkv", planes, "gray")
    assert np.allclose(load_luma_clip(tmp_path / "full.mkv"), np.stack(planes) / 255.0, atol=1e-6)


def test_pictures_are_bt601_luma_in_the_order_of_names(tmp_path):
    rng = np.random.default_rng(1)
    rgb = rng.integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
    for i in (2, 0, 1):
        cv2.imwrite(str(tmp_path / f"{i:03d}.png"), rgb[i][..., ::-1])
    (tmp_path / "notes.txt").write_text("not a picture")
    clip = np.stack(list(iter_luma(tmp_path)))
    assert np.allclose(clip, rgb @ np.array([0.299, 0.587, 0.114]) / 255, atol=2e-5)


def test_clips_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_luma_clip(tmp_path / "none.mp4")
    with pytest.raises(ValueError, match="expected pictures"):
        load_luma_clip(tmp_path)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="OpenCV can read"):
        load_luma_clip(tmp_path)


def test_importing_the_package_imports_neither_opencv_nor_pyav():
    code = ("import sys, dblr_fast, dblr_fast.data; "
            "assert not {'cv2', 'av', 'dblr_fast.training'} & set(sys.modules), 'imported too much'")
    subprocess.run([sys.executable, "-c", code], check=True)
