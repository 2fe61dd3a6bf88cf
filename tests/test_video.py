"""Samples and time: what goes through the network and what must come out untouched."""

import gc
import subprocess
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from clips import Passing, brighter, decoded, leftovers, make_clip, noise, refused, restore, stamps

import dblr_fast
from dblr_fast.errors import RunError
from dblr_fast.video.picture import VideoPicture
from dblr_fast.video.pixels import layout, views
from dblr_fast.video.reader import is_full
from dblr_fast.window import windows


@pytest.fixture
def clip(tmp_path):
    return make_clip(tmp_path / "clip.mp4", 6)


# ---- the window

@pytest.mark.parametrize("radius", [0, 1, 2, 5])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_window_repeats_the_edges(radius, count):
    expected = [tuple(min(max(j, 0), count - 1) for j in range(i - radius, i + radius + 1))
                for i in range(count)]
    assert list(windows(range(count), radius)) == expected


def test_window_of_nothing_is_empty():
    assert list(windows([], 2)) == []


def test_window_gives_an_item_as_soon_as_it_can():
    read = []
    stream = windows((read.append(i) or i for i in range(100)), 2)
    next(stream)
    assert read == [0, 1, 2]


# ---- samples

FORMATS = ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p12le",
           "yuv420p16le", "gray", "gray10le", "gray16le", "yuva420p", "bgr0", "bgra", "gbrp10le", "gbrp16le",
           "nv12", "rgb24", "yuyv422"]
RAW = {"yuvj420p", "nv12", "rgb24", "yuyv422"}  # made as raw video: ffv1 does not take these names


@pytest.mark.parametrize("name", FORMATS)
def test_an_identity_changes_no_sample(tmp_path, name):
    file, codec = ("a.nut", "rawvideo") if name in RAW else ("a.mkv", "ffv1")
    source = make_clip(tmp_path / file, 6, (66, 50), name, codec, smooth=False)
    restore(source, tmp_path / "b.mkv", codec="ffv1")
    before, after = decoded(source), decoded(tmp_path / "b.mkv")
    assert len(before) == len(after) == 6
    for (_, a, frame), (_, b, _) in zip(before, after):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            np.testing.assert_array_equal(x, y)


def test_p010_is_kept_in_the_upper_bits():
    """Hardware decoders give it; no file names it, so it is tested by itself."""
    frame = noise(66, 50, "p010le", 1, smooth=False)
    picture = VideoPicture(frame, full=False)
    y, u, v = (view.copy() >> 6 for view in picture.components())
    luma = picture.luma(torch.device("cpu"), (0.3, 0.6, 0.1))
    np.testing.assert_allclose(luma.numpy(), (y - np.float32(64)) / 876, atol=1e-6)
    picture.put(luma + 0.05, luma)
    planar = picture.as_format("yuv420p10le")
    for a, b in zip((np.clip(np.rint(y + 0.05 * 876), 0, 1023), u, v), views(planar, layout("yuv420p10le"))):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name, full", [("yuv420p", False), ("yuv420p", True), ("yuv420p10le", False),
                                        ("yuv422p10le", True), ("gray16le", False)])
def test_luma_is_what_the_engine_gave_and_chroma_is_untouched(tmp_path, name, full):
    source = make_clip(tmp_path / "a.mkv", 6, (322, 50), name, "ffv1", smooth=False,
                       color_range=2 if full else 1)
    restore(source, tmp_path / "b.mkv", Passing(brighter), codec="ffv1")
    for (_, a, frame), (_, b, other) in zip(decoded(source), decoded(tmp_path / "b.mkv")):
        bits = frame.format.components[0].bits
        span = 2**bits - 1 if full else 219 * 2 ** (bits - 8)
        expected = np.clip(np.rint(a[0].astype(np.float64) + 0.05 * span), 0, 2**bits - 1)
        assert np.abs(b[0].astype(np.float64) - expected).max() <= (0 if bits < 16 else 1)
        assert expected.max() == 2**bits - 1  # above nominal white, and kept as far as it can be held
        for x, y in zip(a[1:], b[1:]):
            np.testing.assert_array_equal(x, y)
        assert other.color_range == frame.color_range == (2 if full else 1)


def test_predicted_frames_are_not_damaged(tmp_path):
    """Writing into a frame that the decoder still predicts from would show in all frames after it.

    Pictures that come back every fifth frame are predicted from the one five frames ago.
    """
    source = make_clip(tmp_path / "a.mp4", 40, period=5, smooth=False, options={
        "g": "60", "refs": "8", "bf": "0", "x264-params": "scenecut=0"})
    restore(source, tmp_path / "b.mkv", Passing(lambda y: 1 - y), codec="ffv1")
    for (_, a, _), (_, b, _) in zip(decoded(source), decoded(tmp_path / "b.mkv")):
        np.testing.assert_array_equal(np.clip(251 - a[0].astype(int), 0, 255), b[0])
        np.testing.assert_array_equal(a[1], b[1])


@pytest.mark.parametrize("range_, black, span", [("auto", 16, 219), ("limited", 16, 219), ("full", 0, 255)])
def test_range_says_what_the_samples_mean(tmp_path, range_, black, span):
    source, seen = make_clip(tmp_path / "a.mkv", 5, codec="ffv1"), []
    engine = Passing(lambda y: seen.append(y.clone()) or y)
    restore(source, tmp_path / "b.mkv", engine, codec="ffv1", range=range_)
    for y, (_, parts, _) in zip(seen, decoded(source)):
        np.testing.assert_allclose(y[0, 0].numpy(), (parts[0] - np.float32(black)) / span, atol=1e-6)


@pytest.mark.parametrize("name, tag, full", [
    ("yuv420p", 0, False), ("yuv420p", 1, False), ("yuv420p", 2, True), ("yuvj420p", 0, True),
    ("gbrp", 0, True), ("gray", 0, False)])
def test_an_unspecified_range_means_limited(name, tag, full):
    frame = av.VideoFrame(16, 16, name)
    frame.color_range = tag
    assert is_full(frame, "auto") is full
    assert is_full(frame, "full") and not is_full(frame, "limited")


def test_the_scale_of_the_weights_is_honoured(tmp_path):
    source, seen = make_clip(tmp_path / "a.mkv", 5, codec="ffv1"), []
    engine = Passing(lambda y: seen.append(y.clone()) or y, metadata={"luma_range": "limited"})
    restore(source, tmp_path / "b.mkv", engine, codec="ffv1")
    for y, (_, a, _), (_, b, _) in zip(seen, decoded(source), decoded(tmp_path / "b.mkv")):
        np.testing.assert_allclose(y[0, 0].numpy(), a[0] / 255, atol=1e-6)
        np.testing.assert_array_equal(a[0], b[0])


def test_the_window_that_the_network_sees(tmp_path):
    source, seen = make_clip(tmp_path / "a.mkv", 4, codec="ffv1"), []

    class Watching(Passing):
        def __call__(self, batch):
            seen.append(batch[0].numpy().copy())
            return super().__call__(batch)

    restore(source, tmp_path / "b.mkv", Watching(), codec="ffv1")
    luma = [(parts[0].astype(np.float32) - 16) / 219 for _, parts, _ in decoded(source)]
    for i, batch in enumerate(seen):
        expected = np.stack([luma[min(max(i + d, 0), 3)] for d in range(-2, 3)])
        np.testing.assert_allclose(batch, expected, atol=1e-6)


def test_the_real_network_end_to_end(tmp_path):
    """The identity as weights: through the engine, the frame comes out as it went in (above nominal
    black)."""
    model = dblr_fast.DBLRNet(width=8, blocks=1, init="identity").eval()
    source = make_clip(tmp_path / "a.mkv", 3, codec="ffv1")
    result = dblr_fast.deblur_video(source, tmp_path / "b.mkv", model=model, codec="ffv1")
    assert (result.frames, result.width, result.height, result.complete) == (3, 64, 48, True)
    for (_, a, _), (_, b, _) in zip(decoded(source), decoded(tmp_path / "b.mkv")):
        np.testing.assert_array_equal(np.maximum(a[0], 16), np.maximum(b[0], 16))
        np.testing.assert_array_equal(a[1], b[1])


# ---- time

ODD_STAMPS = [1001, 2002, 3500, 4000, 9000, 9001, 12000, 15000, 16000, 17000, 20000, 25001]


@pytest.mark.parametrize("first", [0, 1001, 123456])
@pytest.mark.parametrize("bframes", ["0", "3"])
def test_variable_frame_rate_and_a_late_start_keep_their_stamps(tmp_path, first, bframes):
    base = Fraction(1, 30000)
    wanted = [s - 1001 + first for s in ODD_STAMPS]
    source = make_clip(tmp_path / "a.mp4", time_base=base, stamps=wanted, options={"bf": bframes},
                       container={"movie_timescale": "30000"})
    assert stamps(source) == [s * base for s in wanted]
    restore(source, tmp_path / "b.mp4")
    assert stamps(tmp_path / "b.mp4") == stamps(source)
    with av.open(str(tmp_path / "b.mp4")) as file:
        assert file.streams.video[0].time_base == base


@pytest.mark.parametrize("suffix", [".mkv", ".mov", ".avi"])
def test_other_containers_keep_the_stamps(tmp_path, suffix):
    base = Fraction(1, 1000) if suffix == ".mkv" else Fraction(1, 30)
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    marks = [0, 40, 41, 100, 200, 300] if suffix == ".mkv" else range(6)
    source = make_clip(tmp_path / f"a{suffix}", codec=codec, time_base=base, stamps=list(marks))
    restore(source, tmp_path / f"b{suffix}", codec=codec)
    assert stamps(tmp_path / f"b{suffix}") == stamps(source)


def test_matroska_rounds_to_milliseconds_and_says_so(tmp_path):
    source = make_clip(tmp_path / "a.mp4", time_base=Fraction(1, 30000), stamps=[1001 * i for i in range(6)])
    result = restore(source, tmp_path / "b.mkv")
    assert any("MKV files count time in units of 1 ms" in warning for warning in result.warnings)
    for a, b in zip(stamps(source), stamps(tmp_path / "b.mkv")):
        assert abs(a - b) <= Fraction(1, 2000)


def test_a_container_that_moves_the_start_says_so(tmp_path):
    source = make_clip(tmp_path / "a.mp4", audio=True, time_base=Fraction(1, 90000),
                       stamps=range(0, 30000, 3000))
    result = restore(source, tmp_path / "b.ts")
    shift = stamps(tmp_path / "b.ts")[0] - stamps(source)[0]
    assert shift > 0 and any(f"starts +{float(shift) * 1000:.0f} ms later" in w for w in result.warnings)


def test_a_file_that_cannot_be_read_back_is_not_delivered(tmp_path, clip):
    refused("cannot hold ffv1", clip, tmp_path / "b.ts", codec="ffv1")
    with pytest.raises(RunError, match="b.mov cannot be read back"):
        restore(clip, tmp_path / "b.mov", codec="rawvideo")
    assert not (tmp_path / "b.mov").exists() and leftovers(tmp_path) == []


def test_the_last_frame_keeps_its_duration(tmp_path):
    source = make_clip(tmp_path / "a.mp4", 8, durations=[512] * 7 + [5120], options={"bf": "0"})
    restore(source, tmp_path / "b.mkv", codec="ffv1")
    last = decoded(source)[-1][2].duration * decoded(source)[-1][2].time_base
    frame = decoded(tmp_path / "b.mkv")[-1][2]
    assert last == Fraction(1, 3) and abs(frame.duration * frame.time_base - last) < Fraction(1, 1000)


def test_the_encoder_places_its_own_key_frames(tmp_path):
    source = make_clip(tmp_path / "a.mp4", 12, options={"g": "1"})
    assert all(frame.key_frame for _, _, frame in decoded(source))
    restore(source, tmp_path / "b.mp4")
    assert [frame.key_frame for _, _, frame in decoded(tmp_path / "b.mp4")] == [True] + 11 * [False]


# ---- memory

def test_no_more_frames_are_alive_than_the_window_needs(tmp_path, monkeypatch):
    from dblr_fast.video import reader

    alive, most = [], []

    class Counted(reader.VideoPicture):
        def __init__(self, *args):
            super().__init__(*args)
            alive.append(1)
            most.append(len(alive))

        def __del__(self):
            alive.pop()

    monkeypatch.setattr(reader, "VideoPicture", Counted)
    source = make_clip(tmp_path / "a.mp4", 60)
    restore(source, tmp_path / "b.mp4")
    assert len(most) == 60 and max(most[20:]) <= 8


FREED_WHILE_DECODING = """
import gc, sys
from pathlib import Path
from dblr_fast.video.log import speaking
from dblr_fast.video.reader import VideoReader
for _ in range(20):
    reader = VideoReader(Path(sys.argv[1]))  # its decoder's threads are at work on the frames after the first
    reader.close()
    with speaking("VERBOSE"):  # as when the next file is opened
        del reader
        gc.collect()
"""


def test_a_decoder_is_freed_while_another_file_is_opened():
    """Its threads' messages want the lock that whoever frees it holds: without a stop before, both wait for ever."""
    clip = Path(__file__).parents[1] / "examples" / "street.mp4"
    subprocess.run([sys.executable, "-c", FREED_WHILE_DECODING, str(clip)], check=True, timeout=120)


def test_memory_does_not_grow_with_length(tmp_path):
    def peak(frames):
        source = make_clip(tmp_path / f"{frames}.mkv", frames, (160, 120), codec="ffv1", audio=True)
        gc.collect()
        tracemalloc.start()
        restore(source, tmp_path / f"{frames}.out.mkv", codec="ffv1")
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(10)  # imports and caches
    assert peak(120) < peak(30) + 300_000
