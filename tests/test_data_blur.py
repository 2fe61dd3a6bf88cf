"""The blur that training sets draw: faster sampling against the direct one, colours, bytes, and the camera's path."""

from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest
from data_cases import colours, texture

from dblr_fast.data import BlurConfig, BlurSettings, blur, synthesize_window, window_rng
from dblr_fast.data.scene import Moving, enlarge, flow_between
from dblr_fast.data.windows import Reduced, is_cut, neighbours, settings_of, window_numbers

CLEAN = BlurSettings(size=(48, 56), sharp_share=0.0, flow_share=0.0, noise=0.0, jpeg_share=0.0)
FAST = replace(CLEAN, oversample=2, step=0.5)


def moving(count=7, step=3):
    wide = texture(140, 180 + step * count)
    return np.stack([wide[:, step * i:step * i + 180] for i in range(count)])


def psnr(a, b):
    return -10 * np.log10(max(float(((a.astype(np.float64) - b) ** 2).mean()), 1e-12))


def made(frames, settings, seeds=range(8)):
    return [synthesize_window(frames, window_rng(5, seed), settings, origin=(40, 60)) for seed in seeds]


def test_bytes_are_as_good_as_floats():
    frames = moving()
    for settings in (FAST, replace(FAST, flow_share=1.0)):
        for ours, theirs in zip(made(frames, settings), made(frames.astype(np.float32) / 255, settings)):
            assert np.array_equal(ours[1], theirs[1]) and psnr(ours[0], theirs[0]) > 60


@pytest.mark.parametrize("length", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("flow", [0.0, 1.0])
def test_fast_sampling_is_close_to_the_direct_one(length, flow):
    """Far closer than either is to the sharp frame: blur, not sampling, is what a network then learns from."""
    frames = moving()
    direct, fast = (replace(s, length=(length, length), flow_share=flow, responses=("srgb",)) for s in (CLEAN, FAST))
    for (a, sharp), (b, _) in zip(made(frames, direct), made(frames, fast)):
        assert psnr(a, b) > min(max(psnr(a[2], sharp) + 10, 34), 48)


def test_twice_as_large_pixels_stay():
    light = texture(31, 40).astype(np.float32) / 255
    large = enlarge(light)
    assert large.shape == (61, 79) and np.array_equal(large[::2, ::2], light)
    x = np.arange(40)
    wave = np.sin(0.9 * x)[None].repeat(9, 0).astype(np.float32)
    assert np.abs(enlarge(wave)[4, 9:-9] - np.sin(0.45 * np.arange(79))[9:-9]).max() < 2e-2
    assert np.array_equal(enlarge(np.stack([light] * 3, -1))[..., 1], large)


def test_no_blur_is_no_change():
    for settings in (FAST, replace(FAST, flow_share=1.0, scene_speed=(0.0, 0.0))):
        for blurred, sharp in made(moving(), replace(settings, length=(0.0, 0.0), responses=("linear",)), range(3)):
            assert np.abs(blurred - sharp).max() < 1e-5


def test_colours_are_blurred_alike():
    """Each of R, G, B as luma of its own, whose trajectory it shares; flow is that of their luma."""
    picture = colours(140, 180)
    channels = [made(picture[None, ..., c], FAST) for c in range(3)]
    for (window, sharp), *alone in zip(made(picture[None], FAST), *channels):
        assert window.shape == (5, 48, 56, 3) and sharp.shape == (48, 56, 3)
        for channel, (one, centre) in enumerate(alone):
            assert np.array_equal(sharp[..., channel], centre) and np.abs(window[..., channel] - one).max() < 2e-3
    grey = np.stack([moving()] * 3, -1)
    for ours, theirs in zip(made(grey, replace(FAST, flow_share=1.0), range(3)),
                            made(moving(), replace(FAST, flow_share=1.0), range(3))):
        assert np.abs(ours[0][..., 1] - theirs[0]).max() < 2e-3
    red = np.zeros_like(picture)
    red[..., 0] = picture[..., 0] // 2 + 128
    (window, sharp), = made(red[None], replace(FAST, jpeg_share=1.0, jpeg_quality=(95, 95), length=(0.0, 0.0)), [1])
    assert psnr(window[2], sharp) > 30 and window.dtype == np.float32


@pytest.mark.parametrize("frames", [3, 5, 7, 9, 11])
def test_the_path_runs_on_through_the_window(frames, monkeypatch):
    """With the shutter always open each exposure ends where the next begins, and none has fewer than 15 instants; the
    sharp frame is the middle of the middle one."""
    taken = []
    expose = blur._expose
    monkeypatch.setattr(blur, "_expose", lambda scene, times, maps, *rest: taken.append((times, maps)) or expose(
        scene, times, maps, *rest))
    for length in (2.0, 24.0):
        taken.clear()
        made(moving(), replace(settings_of(BlurConfig(length=(length, length), exposure=(1.0, 1.0), sharp_share=0.0),
                                           frames, (48, 56))), [3])
        assert len(taken) == frames
        assert all(len(times) == len(maps) == max(15, length + 1) for times, maps in taken)
        for (before, a), (after, b) in pairwise(taken):
            assert before[-1] == pytest.approx(after[0]) and np.allclose(a[-1], b[0], rtol=0, atol=1e-6)
        times, maps = taken[frames // 2]
        middle = (maps[(len(maps) - 1) // 2] + maps[len(maps) // 2]) / 2
        assert times.mean() == pytest.approx(0) and np.abs(middle[:2, :2] - np.eye(2)).max() < 0.05


def test_lengths_differ_across_the_picture():
    """Perspective, rotation and zoom: the paths of the corners of a large window are not of one length."""
    ratios = []
    for seed in range(30):
        path, axis = blur._motion(window_rng(seed), 2.5), np.array([128.0, 128.0])
        corners = np.array([(0, 0), (255, 0), (0, 255), (255, 255)], float)
        moved = blur._apply(blur._homographies(path(np.linspace(-0.5, 0.5, 17)), axis), corners)
        lengths = np.linalg.norm(np.diff(moved, axis=0), axis=2).sum(0)
        ratios.append(lengths.max() / lengths.min())
    assert np.median(ratios) > 1.3


def test_a_moving_scene_is_interpolated_along_its_flow():
    """A pan of three pixels a frame: half way to the next frame is one and a half pixels on."""
    frames = moving()
    scene = Moving(list(frames), [f.astype(np.float32) for f in frames], 3, 1.0, 0.5)
    wide = texture(140, 180 + 21)
    inside = slice(20, -20), slice(20, -20)
    for t, shift in ((0.0, 9.0), (0.5, 10.5), (-1.5, 4.5), (3.0, 18.0), (9.0, 18.0)):
        wanted = cv2.warpAffine(wide.astype(np.float32), np.float32([[1, 0, shift], [0, 1, 0]]), (180, 140),
                                flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
        assert psnr(scene.at(t)[inside] / 255, wanted[inside] / 255) > 26, t
    assert scene.at(0.5) is scene.at(0.52)  # nothing has moved half a pixel
    assert scene.at(0.5) is not scene.at(0.9)


@pytest.mark.parametrize("size", [(8, 8), (8, 40), (16, 300), (24, 300), (31, 900), (64, 8), (48, 400), (140, 380)])
def test_flow_of_any_size(size):
    """Two pixels to the right, in small and in flat pictures too."""
    wide = texture(size[0], size[1] + 2, 4)
    flow = flow_between(np.ascontiguousarray(wide[:, 2:]), np.ascontiguousarray(wide[:, :-2]))
    assert flow.shape == (*size, 2) and flow.dtype == np.float32
    if min(size) > 40:
        assert np.abs(np.median(flow, (0, 1)) - (2, 0)).max() < 0.3


class Spied:
    """A clip that notes what is read of it."""

    def __init__(self, frames):
        self.frames, self.shape, self.read = frames, frames.shape, []

    def cut(self, numbers, rows, columns):
        self.read.append((list(numbers), rows, columns))
        return self.frames[list(numbers), rows, columns]


def test_only_what_the_camera_sees_is_read():
    spied = Spied(np.stack([texture(400, 600)] * 9))
    settings = replace(FAST, length=(4.0, 4.0))
    blurred, sharp = synthesize_window(Reduced(spied, [6], (200, 300)), window_rng(1), settings, origin=(80, 100))
    (numbers, rows, columns), = spied.read
    assert numbers == [6] and rows.stop - rows.start < 250 and columns.stop - columns.start < 260
    whole = cv2.resize(spied.frames[6], (300, 200), interpolation=cv2.INTER_AREA)
    assert np.abs(sharp - whole[80:128, 100:156] / 255).max() < 1.01 / 255
    assert blurred.shape == (5, 48, 56)


def test_numbers_of_a_window():
    assert window_numbers(0, 5, (0, 9)) == [0, 0, 0, 1, 2] and window_numbers(8, 5, (0, 9)) == [6, 7, 8, 8, 8]
    assert window_numbers(4, 5, (3, 6)) == [3, 3, 4, 5, 5]  # of the rest of the clip nothing
    assert window_numbers(1, 11, (0, 3)) == [0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 2]
    assert [neighbours(5, speed) for speed in (0.0, 0.1, 0.5, 1.0)] == [1, 1, 2, 3] and neighbours(11, 1.0) == 6
    dark, bright = np.full((2, 40, 40), 30, np.uint8), np.full((2, 40, 40), 200, np.uint8)
    clip = Spied(np.concatenate([dark, bright]))
    assert not is_cut(clip, [0, 1]) and not is_cut(clip, [2, 3]) and is_cut(clip, [0, 1, 2])


def test_settings_of_the_sampling_are_checked():
    with pytest.raises(ValueError, match="oversample must be 1 or 2, got 3"):
        BlurSettings(oversample=3)
