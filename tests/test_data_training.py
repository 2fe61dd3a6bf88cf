"""Samples: what they are, that they depend on their number alone, and that footage that does not fit is refused."""

import pickle

import cv2
import numpy as np
import pytest
import torch
from clips import make_clip
from data_cases import CLEAN, coded_pictures, colours, dvd, kitti, settings, texture, write_pictures

from dblr_fast.data import BlurConfig, DataConfig, load_luma_clip, training, training_set, window_rng
from dblr_fast.data.layouts import find
from dblr_fast.data.windows import blurred_from_sharp
from dblr_fast.errors import Refusal


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    """Three clips of sharp footage: two of pictures, one video."""
    root = tmp_path_factory.mktemp("sharp")
    write_pictures(root / "a", count=12, size=(90, 120))
    write_pictures(root / "b", count=12, size=(60, 80), seed=1, suffix=".jpg")
    make_clip(root / "c.mp4", frames=16, size=(96, 64))
    return root


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in ("blurred", "sharp"))


@pytest.mark.parametrize("frames", [1, 3, 5, 7, 9, 11])
def test_samples(footage, frames):
    dataset = training_set(settings(footage, crop=32), frames, 0)
    for number in (0, 1, 2, 10**12):
        sample = dataset[number]
        assert sample["blurred"].shape == (frames, 32, 32) and sample["sharp"].shape == (1, 32, 32)
        for part in sample.values():
            assert part.dtype == torch.float32 and part.is_contiguous() and 0 <= part.min() and part.max() <= 1
    with pytest.raises(IndexError, match="from 0 on"):
        dataset[-1]


def test_a_sample_depends_on_its_number_alone(footage, tmp_path):
    """Not on what was asked for before, on the process, on the cache, or on the threads of OpenCV."""
    config = settings(footage, blur_flow_share=0.6, turns=True)
    first = training_set(config, 5, 3)
    wanted = [first[i] for i in range(12)]
    again = training_set(settings(footage, blur_flow_share=0.6, turns=True, cache=tmp_path), 5, 3)
    unpickled = pickle.loads(pickle.dumps(again))
    threads = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        for i in reversed(range(12)):
            assert same(again[i], wanted[i]) and same(unpickled[i], wanted[i]), i
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(threads)
    assert len({wanted[i]["sharp"].sum().item() for i in range(12)}) == 12
    other = training_set(config, 5, 4)
    assert not any(same(other[i], wanted[i]) for i in range(12))


def test_pickled_sets_carry_no_footage(footage, tmp_path):
    dataset = training_set(settings(footage, cache=tmp_path), 5, 0)
    for i in range(6):
        dataset[i]
    assert len(pickle.dumps(dataset)) < 20_000


def coded(root, count=9, videos=("IMG_0001",), size=(40, 48)):
    """A DVD tree whose pixels tell where they come from; blurred ones are 7 levels brighter than sharp ones."""
    for name in videos:
        coded_pictures(root / "quantitative_datasets" / name / "GT", count, size)
        coded_pictures(root / "quantitative_datasets" / name / "input", count, size, offset=7)
    return root


def place_of(sharp):
    """How a crop of coded pictures lies: its steps along rows and columns, 1 and 3 when it is upright."""
    down, right = (np.unique(np.diff(sharp.astype(int), axis=axis) % 256) for axis in (0, 1))
    assert len(down) == len(right) == 1
    return int(down[0]), int(right[0])


def test_pairs_are_aligned_in_place_and_time(tmp_path):
    """The window's frames are the clip's, its ends repeated; all are cut at one place; the sharp is the centre's."""
    dataset = training_set(settings(coded(tmp_path), flips=False, held_out=0), 5, 0)
    possible = {tuple(min(max(centre + d, 0), 8) - centre for d in range(-2, 3)) for centre in range(9)}
    seen = set()
    for number in range(60):
        sample = dataset[number]
        blurred, sharp = ((255 * sample[key]).round().numpy().astype(int) for key in ("blurred", "sharp"))
        assert place_of(sharp[0]) == (1, 3)
        differences = (blurred - 7 - sharp + 128) % 256 - 128  # 20 a frame, the same all over it
        assert (differences == differences[:, :1, :1]).all() and (differences % 20 == 0).all()
        seen.add(tuple(int(d) // 20 for d in differences[:, 0, 0]))
    assert seen == possible and len(possible) == 5  # both ends, the frames beside them, and those in between


def test_flips_and_turns(tmp_path):
    """Left to right and upside down where asked for; transposed and backwards where that is; each about half of the
    time, and the same for all frames of a window."""
    coded(tmp_path)
    seen = {}
    for flips, turns in ((False, False), (True, False), (False, True), (True, True)):
        dataset = training_set(settings(tmp_path, flips=flips, turns=turns, held_out=0), 3, 0)
        seen[flips, turns] = kinds = []
        for number in range(80):
            sample = {key: (255 * value).round().numpy() for key, value in dataset[number].items()}
            down, right = place_of(sample["sharp"][0])
            assert all(place_of(frame) == (down, right) for frame in sample["blurred"])
            kinds.append((right in (3, 253), down in (255, 253), right in (255, 253)))
    assert set(seen[False, False]) == {(True, False, False)}
    assert len(set(seen[True, False])) == 4 and all(upright for upright, *_ in seen[True, False])
    assert set(seen[False, True]) == {(True, False, False), (False, False, False)}
    assert len(set(seen[True, True])) == 8
    for kinds in (seen[True, False], seen[True, True]):
        for part in zip(*kinds):
            assert sum(part) == 80 or 25 < sum(part) < 55


def test_windows_may_run_backwards(tmp_path):
    coded(tmp_path)
    forwards = []
    dataset = training_set(settings(tmp_path, flips=False, turns=True, held_out=0), 3, 0)
    for number in range(60):
        blurred = (255 * dataset[number]["blurred"]).round().numpy().astype(int)
        step = int(((blurred[2] - blurred[0]) % 256).flat[0])
        forwards.append(step < 128)
    assert 15 < sum(forwards) < 45


def test_weights_choose_among_paths(tmp_path):
    dark, bright = tmp_path / "dark", tmp_path / "bright"
    for folder, level in ((dark, 40), (bright, 200)):
        for name in "ab":
            write_pictures(folder / name, make=lambda h, w, seed, level=level: np.full((h, w, 3), level, np.uint8))

    def share(**changes):
        dataset = training_set(settings(dark, bright, cache=tmp_path / "cache", **CLEAN, **changes), 3, 0)
        return np.mean([float(dataset[i]["sharp"].mean()) > 0.5 for i in range(100)])

    assert share(weights=(0.0, 1.0)) == 1 and share(weights=(5.0, 0.0)) == 0
    assert 0.35 < share() < 0.65 and 0.1 < share(weights=(4.0, 1.0)) < 0.32


def test_what_is_held_out_is_not_trained_on(tmp_path):
    """The last clip; of a single clip its last fifth, by the true neighbours of objects' motion too."""
    for name, level in (("a", 40), ("b", 80), ("c", 200)):
        write_pictures(tmp_path / name, make=lambda h, w, seed, level=level: np.full((h, w, 3), level, np.uint8))

    def levels(*paths, **changes):
        dataset = training_set(settings(*paths, **{**CLEAN, **changes}), 3, 0)
        return {round(255 * float(dataset[i]["sharp"].mean())) for i in range(40)}

    assert levels(tmp_path) == {40, 80} and levels(tmp_path, held_out=2) == {40}
    assert levels(tmp_path, held_out=0) == {40, 80, 200} == levels(tmp_path, validation_paths=(str(tmp_path / "a"),))
    for i in range(10):
        cv2.imwrite(str(tmp_path / "a" / f"{i:05d}.png"), np.full((60, 80), 100 if i < 8 else 220, np.uint8))
    assert levels(tmp_path / "a", blur_flow_share=1.0) == {100}


def test_the_sharp_frame_is_the_footages_own(tmp_path):
    """At full size the target is cut out of a frame of the clip, bit by bit."""
    path = write_pictures(tmp_path / "clip", count=5, size=(50, 60), make=lambda h, w, seed: np.repeat(
        texture(h, w, seed)[..., None], 3, 2))
    dataset = training_set(settings(path, blur_full_size_share=1.0, flips=False, held_out=0), 5, 0)
    frames = load_luma_clip(path, dtype=np.uint8)
    for number in range(20):
        sharp = (255 * dataset[number]["sharp"][0]).round().numpy().astype(np.uint8)
        places = np.lib.stride_tricks.sliding_window_view(frames, (24, 24), (1, 2))
        assert (places == sharp).all((-1, -2)).any()


def test_reduced_and_full_sizes(tmp_path):
    """Stripes sixteen pixels apart tell by how much a picture was reduced."""
    def stripes(height, width, seed):
        return np.repeat((128 + 100 * np.sin(np.arange(width) * np.pi / 8))[None, :, None], height, 0).repeat(
            3, 2).astype(np.uint8)

    path = write_pictures(tmp_path / "clip", count=5, size=(240, 320), make=stripes)

    def periods(samples=20, **changes):
        config = settings(path, crop=96, flips=False, held_out=0, cache=tmp_path / "cache", **CLEAN, **changes)
        dataset = training_set(config, 1, 0)
        spectra = [np.abs(np.fft.rfft((dataset[i]["sharp"][0].mean(0) - dataset[i]["sharp"].mean()).numpy()))
                   for i in range(samples)]
        return np.array([96 / s.argmax() for s in spectra])

    assert np.allclose(periods(blur_full_size_share=1.0), 16)
    reduced = periods(80, blur_full_size_share=0.0, blur_reduced=(0.4, 0.75))
    assert 6 < reduced.min() < 8 and 11 < reduced.max() < 13
    mixed = periods(blur_full_size_share=0.5)
    assert 0.25 < np.mean(mixed == 16) < 0.75
    # Never below the size of the crop: 96 of 240 rows are 0.4.
    assert periods(blur_full_size_share=0.0, blur_reduced=(0.05, 0.05)).min() > 6


def test_the_shares_of_sharp_and_blurred_windows(footage):
    def still_sharp(share):
        dataset = training_set(settings(footage, **{**CLEAN, "blur_sharp_share": share}, blur_length=(5.0, 20.0)), 3, 0)
        return np.mean([torch.equal(s["blurred"][1], s["sharp"][0]) for s in (dataset[i] for i in range(60))])

    # A quarter of the sharp windows would be noisy, were there any noise.
    assert still_sharp(0.0) == 0 and still_sharp(1.0) == 1 and 0.3 < still_sharp(0.5) < 0.7


def test_blur_is_as_long_as_asked_for(footage):
    def error(length):
        dataset = training_set(settings(footage, **CLEAN, blur_length=(length, length)), 3, 0)
        return np.mean([float((s["blurred"][1] - s["sharp"][0]).square().mean()) for s in map(dataset.__getitem__,
                                                                                             range(30))])

    errors = [error(length) for length in (0.0, 2.0, 6.0, 16.0)]
    assert errors == sorted(errors) and errors[0] < 1e-4 < errors[-1]


def test_noise_and_coding(footage):
    def differs(**changes):
        plain, other = (training_set(settings(footage, flips=False, **{**CLEAN, **c}), 3, 0) for c in ({}, changes))
        pairs = [(plain[i], other[i]) for i in range(30)]
        assert all(torch.equal(a["sharp"], b["sharp"]) for a, b in pairs)
        return np.mean([not torch.equal(a["blurred"], b["blurred"]) for a, b in pairs])

    assert differs(blur_coding_share=1.0, blur_coding_quality=(50, 50)) == 1
    assert 0.25 < differs(blur_noise=0.02) < 0.75


def test_objects_move_on_their_own(tmp_path):
    """Under a camera that stands still a square moves over its background, along the flow of true neighbours."""
    background = texture(120, 160, 1) // 2
    for i in range(11):
        picture = background.copy()
        picture[40:80, 30 + 6 * i:70 + 6 * i] = 128 + texture(40, 40, 2) // 2
        (tmp_path / "clip").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "clip" / f"{i:03d}.png"), picture)

    def moved(share):
        """Means of the difference to the centre in the outer frames of windows."""
        dataset = training_set(settings(
            tmp_path, crop=96, held_out=0, **{**CLEAN, "blur_flow_share": share}, blur_length=(0.0, 0.0),
            blur_full_size_share=1.0, blur_scene_speed=(1.0, 1.0)), 3, 0)
        windows = [dataset[i]["blurred"] for i in range(6)]
        return np.array([[float((w[n] - w[1]).abs().mean()) for n in (0, 2)] for w in windows])

    assert moved(0.0).max() < 1e-3 and moved(1.0).min() > 1e-2


def test_a_cut_between_scenes_is_not_blended(tmp_path):
    for i in range(12):
        (tmp_path / "clip").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "clip" / f"{i:03d}.png"), np.full((60, 80), 20 if i < 6 else 230, np.uint8))
    dataset = training_set(settings(tmp_path, held_out=0, **{**CLEAN, "blur_flow_share": 1.0},
                                    blur_scene_speed=(1.0, 1.0), blur_responses=("linear",)), 5, 0)
    levels = np.unique([np.unique((255 * dataset[i]["blurred"]).round()) for i in range(40)])
    assert set(levels) == {20, 230}


def test_places_with_texture_are_taken_more_often(tmp_path):
    def half_flat(height, width, seed):
        picture = np.full((height, width, 3), 128, np.uint8)
        picture[:, :width // 2] = colours(height, width // 2, seed)
        return picture

    write_pictures(tmp_path / "clip", count=5, size=(60, 200), make=half_flat)
    dataset = training_set(settings(tmp_path, held_out=0, **CLEAN, blur_full_size_share=1.0), 1, 0)
    textured = np.mean([float(dataset[i]["sharp"].std()) > 0.02 for i in range(150)])
    assert textured > 0.7  # of places taken evenly it would be 0.57


def test_one_thread_makes_a_sample(footage, monkeypatch):
    """Optical flow depends on how many threads share it."""
    threads = []
    monkeypatch.setattr(training, "blurred_from_sharp", lambda *a: threads.append(cv2.getNumThreads()) or (
        np.zeros((3, 24, 24), np.float32), np.zeros((24, 24), np.float32)))
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        training_set(settings(footage), 3, 0)[0]
        assert threads == [1] and cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)


def test_only_frames_of_the_span_are_read():
    class Spied:
        frames = np.stack([texture(60, 80, seed) for seed in range(12)])
        shape, read = frames.shape, set()

        def cut(self, numbers, rows, columns):
            self.read |= set(numbers)
            return self.frames[list(numbers), rows, columns]

    clip = Spied()
    for number in range(60):
        blurred_from_sharp(clip, (3, 10), window_rng(number), BlurConfig(flow_share=0.7), 5, 24)
    assert clip.read == set(range(3, 10))


@pytest.mark.parametrize("make, changes, frames, said", [
    ({"size": (30, 80)}, {"crop": 32}, 3, "are 80x30, smaller than data.crop 32; give a smaller crop"),
    ({"count": 4}, {"held_out": 0}, 5, "has 4 frames to train on, fewer than the 5 of a window; .*flow_share 0"),
    ({"count": 6}, {}, 5, "has 5 frames|has 6 frames|fewer than the 5"),
    ({}, {}, 4, "an odd number of frames; got 4"),
    ({}, {"crop": 4}, 3, "data.crop must be a whole number from 8 on; got 4"),
    ({}, {"blur_sharp_share": 1.5}, 3, "data.blur.sharp_share must be from 0 to 1; got 1.5"),
    ({}, {"blur_length": (9.0, 3.0)}, 3, "data.blur.length must be two numbers, the smaller first"),
    ({}, {"weights": (1.0, 2.0)}, 3, "data.weights must be empty or 1 numbers"),
    ({}, {"cache_limit": -1.0}, 3, "data.cache_limit must be a number of GiB from 0 on; got -1.0"),
], ids=str)
def test_what_does_not_fit_is_refused(make, changes, frames, said, tmp_path):
    write_pictures(tmp_path / "clip", **{"count": 12, **make})
    if "6" in said:
        write_pictures(tmp_path / "clip", count=4)
        (tmp_path / "clip" / "00005.png").unlink()
        changes = {"held_out": 1}
    with pytest.raises(Refusal, match=said) as caught:
        training_set(settings(tmp_path, **changes), frames, 0)
    assert "\n" not in str(caught.value)


def test_short_clips(tmp_path):
    """Single pictures will do where nothing moves on its own, and Blurred KITTI's three frames are padded."""
    write_pictures(tmp_path / "stills" / "one", count=1)
    dataset = training_set(settings(tmp_path / "stills", held_out=0, blur_flow_share=0.0), 11, 0)
    assert dataset[0]["blurred"].shape == (11, 24, 24)
    dataset = training_set(settings(kitti(tmp_path / "kitti"), held_out=0), 5, 0)
    assert dataset[0]["blurred"].shape == (5, 24, 24)
    with pytest.raises(Refusal, match="GT has 3 frames to train on, fewer than the 5 of a window; take it out"):
        training_set(settings(dvd(tmp_path / "dvd", count=3), held_out=0), 5, 0)


def test_no_paths(tmp_path):
    with pytest.raises(Refusal, match=r"data.paths must be one folder or more; got \(\)"):
        training_set(DataConfig(), 5, 0)


def test_progress_counts_clips(footage):
    seen = []
    training_set(settings(footage, held_out=0), 3, 0, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)] and len(find(str(footage), "auto").train) == 3
