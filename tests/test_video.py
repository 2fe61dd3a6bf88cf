"""Video files and folders of pictures: what must be kept, what must be refused, what must not be left behind."""

import gc
import os
import shutil
import subprocess
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from clips import SHARED, Passing, decoded, leftovers, make_clip, noise, packets, stamps

import dblr_fast
from dblr_fast.errors import Refusal, RunError
from dblr_fast.video import run as video_run
from dblr_fast.video.picture import VideoPicture
from dblr_fast.video.pixels import layout, views
from dblr_fast.window import windows


def restore(source, target, model=None, limit=None, **options):
    arguments = dict(model=model or Passing(), backend=None, precision="auto", tile="auto", device=None,
                     codec="libx264", crf=None, range="auto", fps=None, overwrite=False, progress=None)
    return video_run._run(source, target, limit=limit, **{**arguments, **options})


def brighter(y):
    return y + 0.05


# ---- the window

@pytest.mark.parametrize("radius", [0, 1, 2, 5])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_window_repeats_the_edges(radius, count):
    expected = [tuple(min(max(i + d, 0), count - 1) for d in range(-radius, radius + 1)) for i in range(count)]
    assert list(windows(range(count), radius)) == expected


def test_window_of_nothing_is_empty():
    assert list(windows([], 2)) == []


def test_window_gives_an_item_as_soon_as_it_can():
    read = []
    stream = windows((read.append(i) or i for i in range(100)), 2)
    next(stream)
    assert read == [0, 1, 2]


# ---- samples

FORMATS = ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p12le", "yuv420p16le",
           "gray", "gray10le", "gray16le", "yuva420p", "bgr0", "bgra", "gbrp10le", "gbrp16le", "nv12", "rgb24", "yuyv422"]
RAW = {"yuvj420p", "nv12", "rgb24", "yuyv422"}  # made as raw video: ffv1 does not take these names


@pytest.mark.parametrize("name", FORMATS)
def test_an_identity_changes_no_sample(tmp_path, name):
    codec = "rawvideo" if name in RAW else "ffv1"
    source = make_clip(tmp_path / ("a.nut" if name in RAW else "a.mkv"), 6, (66, 50), name, codec, smooth=False)
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
    source = make_clip(tmp_path / "a.mkv", 6, (322, 50), name, "ffv1", smooth=False, color_range=2 if full else 1)
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


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_predicted_frames_are_not_damaged(tmp_path, codec):
    """Writing into a frame that the decoder still predicts from would show in all frames after it."""
    source = make_clip(tmp_path / "a.mp4", 24, codec=codec, options={"g": "24"})
    restore(source, tmp_path / "b.mkv", Passing(lambda y: 1 - y), codec="ffv1")
    for (_, a, _), (_, b, _) in zip(decoded(source), decoded(tmp_path / "b.mkv")):
        np.testing.assert_array_equal(np.clip(251 - a[0].astype(int), 0, 255), b[0])
        np.testing.assert_array_equal(a[1], b[1])


@pytest.mark.parametrize("range_, black, span", [("auto", 16, 219), ("limited", 16, 219), ("full", 0, 255)])
def test_range_says_what_the_samples_mean(tmp_path, range_, black, span):
    source, seen = make_clip(tmp_path / "a.mkv", 5, codec="ffv1"), []
    restore(source, tmp_path / "b.mkv", Passing(lambda y: seen.append(y.clone()) or y), codec="ffv1", range=range_)
    for y, (_, parts, _) in zip(seen, decoded(source)):
        np.testing.assert_allclose(y[0, 0].numpy(), (parts[0] - np.float32(black)) / span, atol=1e-6)


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
        np.testing.assert_allclose(batch, np.stack([luma[min(max(i + d, 0), 3)] for d in range(-2, 3)]), atol=1e-6)


def test_the_real_network_end_to_end(tmp_path):
    """The identity as weights: through the engine, the frame comes out as it went in (above nominal black)."""
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
    assert any("milliseconds" in warning for warning in result.warnings)
    for a, b in zip(stamps(source), stamps(tmp_path / "b.mkv")):
        assert abs(a - b) <= Fraction(1, 2000)


def test_the_last_frame_keeps_its_duration(tmp_path):
    source = make_clip(tmp_path / "a.mp4", 8)
    restore(source, tmp_path / "b.mp4")
    lengths = []
    for name in "ab":
        with av.open(str(tmp_path / f"{name}.mp4")) as file:
            lengths.append(file.streams.video[0].duration * file.streams.video[0].time_base)
    assert lengths[0] == lengths[1] == Fraction(8, 30)


# ---- streams, tags

def test_audio_is_copied_byte_for_byte(tmp_path):
    source = make_clip(tmp_path / "a.mp4", 30, audio=True)
    result = restore(source, tmp_path / "b.mp4")
    assert packets(source) == packets(tmp_path / "b.mp4")
    assert len(packets(source)) > 10 and result.warnings == ()


def test_matroska_starts_all_streams_later_together_when_audio_starts_before_zero(tmp_path):
    source = make_clip(tmp_path / "a.mp4", 30, audio=True, time_base=Fraction(1, 1000),
                       stamps=[40 * i for i in range(30)])
    before = packets(source)
    assert before[0][1] < 0  # the encoder's priming
    result = restore(source, tmp_path / "b.mkv")
    after = packets(tmp_path / "b.mkv")
    assert [p[0] for p in before] == [p[0] for p in after]
    shift = stamps(tmp_path / "b.mkv")[0] - stamps(source)[0]
    assert abs((after[5][1] - before[5][1]) - shift) <= Fraction(1, 1000)
    assert (shift != 0) == any("before zero" in warning for warning in result.warnings)


def with_subtitles(video, path, suffix_codec="srt"):
    """The streams of `video` and one of text, in a new file."""
    text = path.with_suffix(".srt")
    text.write_text("1\n00:00:00,000 --> 00:00:00,100\nHello\n\n2\n00:00:00,150 --> 00:00:00,250\nWorld\n")
    with av.open(str(video)) as a, av.open(str(text)) as b, av.open(str(path), "w") as out:
        streams = {}
        for i, file in enumerate((a, b)):
            for stream in file.streams:
                streams[i, stream.index] = out.add_stream_from_template(stream, opaque=True)
        streams[1, 0].metadata.update(language="deu", title="Untertitel")
        for i, file in enumerate((a, b)):
            for packet in file.demux():
                if packet.size:
                    packet.stream = streams[i, packet.stream_index]
                    out.mux(packet)
    return path


def test_subtitles_are_copied_where_they_fit_and_named_where_not(tmp_path):
    video = make_clip(tmp_path / "v.mkv", 8, audio=True)
    source = with_subtitles(video, tmp_path / "a.mkv")
    restore(source, tmp_path / "b.mkv")
    assert packets(source, "subtitle") == packets(tmp_path / "b.mkv", "subtitle")
    assert packets(source) == packets(tmp_path / "b.mkv")
    with av.open(str(tmp_path / "b.mkv")) as file:
        assert [s.type for s in file.streams] == ["video", "audio", "subtitle"]
        assert file.streams[2].metadata["language"] in ("deu", "ger")
        assert file.streams[2].metadata["title"] == "Untertitel"
    result = restore(source, tmp_path / "b.mp4")
    assert any("stream 2 (subtitle" in w and "Untertitel" in w and "left out" in w for w in result.warnings)
    assert [p[0] for p in packets(source)] == [p[0] for p in packets(tmp_path / "b.mp4")]


def test_colour_tags_aspect_and_rotation_are_copied(tmp_path):
    tags = dict(color_range=1, colorspace=9, color_primaries=9, color_trc=16, sample_aspect_ratio=Fraction(4, 3))
    source = make_clip(tmp_path / "a.mp4", name="yuv420p10le", rotation=90, options={"chroma_sample_location": "topleft"},
                       prepare=lambda file, stream: (file.metadata.update(title="A title", comment="so"),
                                                     stream.metadata.update(language="fra")), **tags)
    for target, codec in (("b.mp4", "libx264"), ("c.mkv", "ffv1"), ("d.mp4", "libx265")):
        result = restore(source, tmp_path / target, codec=codec)
        _, _, frame = decoded(tmp_path / target)[0]
        assert frame.format.name == "yuv420p10le"
        assert (frame.color_range, frame.colorspace, frame.color_primaries, frame.color_trc) == (1, 9, 9, 16)
        assert frame.rotation == 90
        reader = video_run._video_reader(tmp_path / target, "auto")
        assert (codec == "ffv1") == any("aspect ratio 4/3" in warning for warning in result.warnings)
        assert reader.stream.sample_aspect_ratio == (None if codec == "ffv1" else Fraction(4, 3))
        assert reader.chroma_site == "topleft"
        assert reader.container.metadata["title"] == "A title"
        assert reader.stream.metadata["language"] in ("fra", "fre")
        reader.close()


def test_hdr_mastering_data_is_carried_by_x265_and_x264(tmp_path):
    display = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
    source = make_clip(tmp_path / "a.mp4", name="yuv420p10le", codec="libx265", color_trc=16, options={
        "x265-params": f"log-level=error:master-display={display}:max-cll=1000,400"})

    def hdr(path):
        kinds = ("MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL")
        return {d.type.name: bytes(d) for d in decoded(path)[0][2].side_data if d.type.name in kinds}

    assert len(hdr(source)) == 2
    for codec in ("libx265", "libx264"):
        result = restore(source, tmp_path / f"{codec}.mp4", codec=codec)
        assert hdr(tmp_path / f"{codec}.mp4").keys() == hdr(source).keys()
        assert hdr(tmp_path / f"{codec}.mp4")["CONTENT_LIGHT_LEVEL"] == hdr(source)["CONTENT_LIGHT_LEVEL"]
        assert result.warnings == ()
    result = restore(source, tmp_path / "f.mkv", codec="ffv1")
    assert any("mastering display" in warning for warning in result.warnings)


def test_full_range_stays_full_in_h264(tmp_path):
    source = make_clip(tmp_path / "a.mp4", name="yuvj420p", color_range=2)
    restore(source, tmp_path / "b.mp4")
    assert decoded(tmp_path / "b.mp4")[0][2].color_range == 2
    reader = video_run._video_reader(tmp_path / "b.mp4", "auto")
    assert reader.first.full
    reader.close()


def test_chapters_are_copied(tmp_path):
    chapter = {"id": 1, "start": 0, "end": 100, "time_base": Fraction(1, 1000), "metadata": {"title": "One"}}
    source = make_clip(tmp_path / "a.mkv", prepare=lambda file, stream: file.set_chapters([chapter]))
    for target in ("b.mkv", "c.mp4"):
        restore(source, tmp_path / target)
        with av.open(str(tmp_path / target)) as file:
            (found,) = file.chapters()
            assert found["metadata"]["title"] == "One"
            assert found["end"] * found["time_base"] == Fraction(1, 10)


def test_a_cover_picture_is_not_taken_for_the_video(tmp_path):
    ok, data = cv2.imencode(".png", np.zeros((20, 20, 3), np.uint8))
    assert ok
    video = make_clip(tmp_path / "v.mkv", audio=True)
    with av.open(str(video)) as a, av.open(str(tmp_path / "a.mkv"), "w") as out:
        for stream in a.streams:
            out.add_stream_from_template(stream, opaque=True)
        out.add_attachment("cover.png", "image/png", data.tobytes())
        for packet in a.demux():
            if packet.size:
                packet.stream = out.streams[packet.stream_index]
                out.mux(packet)
    result = restore(tmp_path / "a.mkv", tmp_path / "b.mkv")
    assert (result.width, result.frames) == (64, 8)


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


# ---- refusals

@pytest.fixture
def clip(tmp_path):
    return make_clip(tmp_path / "clip.mp4", 6)


def refused(match, source, target, error=Refusal, **options):
    folder = Path(target).parent
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()} if folder.is_dir() else {}
    with pytest.raises(error, match=match) as caught:
        restore(source, target, **options)
    assert "\n" not in str(caught.value)
    if folder.is_dir():
        assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before


def test_missing_source(tmp_path):
    refused("there is no file or folder", tmp_path / "none.mp4", tmp_path / "b.mp4")


def test_text_is_not_a_video(tmp_path):
    for name in ("a.mp4", "a.txt", "a.mkv"):
        (tmp_path / name).write_text("hello, I am not a video\n" * 100)
        refused("not a video|cannot be read", tmp_path / name, tmp_path / "b.mp4")


def test_an_empty_file_is_not_a_video(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    refused("cannot be read", tmp_path / "a.mp4", tmp_path / "b.mp4")


def test_a_single_picture_is_not_a_video(tmp_path):
    for suffix in ("png", "jpg"):
        cv2.imwrite(str(tmp_path / f"a.{suffix}"), np.zeros((32, 32, 3), np.uint8))
        refused("not a video", tmp_path / f"a.{suffix}", tmp_path / "b.mp4")


def test_sound_alone_has_no_video_stream(tmp_path):
    source = make_clip(tmp_path / "v.mp4", 30, audio=True)
    with av.open(str(source)) as a, av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream = out.add_stream_from_template(a.streams.audio[0])
        for packet in a.demux(a.streams.audio[0]):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    refused("holds no video stream", tmp_path / "a.mp4", tmp_path / "b.mp4")


def test_zero_frames(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as file:
        stream = file.add_stream("mpeg4", rate=30)
        stream.width, stream.height = 64, 48
        sound = file.add_stream("pcm_s16le", rate=48000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 9600), np.int16), "s16", "stereo")
        silence.sample_rate = 48000
        file.mux(sound.encode(silence))
    refused("not one frame", tmp_path / "a.mkv", tmp_path / "b.mkv")


def test_target_exists(clip, tmp_path):
    (tmp_path / "b.mp4").write_text("precious")
    refused("exists; --overwrite", clip, tmp_path / "b.mp4")
    assert (tmp_path / "b.mp4").read_text() == "precious"
    restore(clip, tmp_path / "b.mp4", overwrite=True)
    assert len(decoded(tmp_path / "b.mp4")) == 6


@pytest.mark.parametrize("make", [lambda a, b: b.symlink_to(a), lambda a, b: os.link(a, b)])
def test_target_is_source(clip, tmp_path, make):
    refused("is the input itself", clip, clip, overwrite=True)
    make(clip, tmp_path / "link.mp4")
    refused("is the input itself", clip, tmp_path / "link.mp4", overwrite=True)
    refused("is the input itself", tmp_path / "link.mp4", clip, overwrite=True)


def test_target_folder_missing(clip, tmp_path):
    refused("does not exist; make it first", clip, tmp_path / "none" / "b.mp4")


def test_target_folder_not_writable(clip, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o500)
    try:
        if os.access(closed, os.W_OK):
            pytest.skip("this user may write everywhere, so a closed folder cannot be tested")
        refused("nothing can be written", clip, closed / "b.mp4")
    finally:
        closed.chmod(0o700)


def test_target_suffix_unknown(clip, tmp_path):
    refused("names no video container", clip, tmp_path / "b.xyz")


def test_codec_unknown_or_unfit(clip, tmp_path):
    refused("there is no video encoder 'nonsense'", clip, tmp_path / "b.mp4", codec="nonsense")
    refused("there is no video encoder 'aac'", clip, tmp_path / "b.mp4", codec="aac")
    refused("cannot hold libx264", clip, tmp_path / "b.webm")
    refused("no constant rate factor", clip, tmp_path / "b.mkv", codec="ffv1", crf=10)
    refused("crf must lie between", clip, tmp_path / "b.mp4", crf=1000)


def test_options_out_of_range(clip, tmp_path):
    refused("range must be one of", clip, tmp_path / "b.mp4", range="narrow")
    refused("fps is for making", clip, tmp_path / "b.mp4", fps=10)
    refused("there is no model 'nobody'", clip, tmp_path / "b.mp4", model="nobody")
    refused("there is no device", clip, tmp_path / "b.mp4", model=dblr_fast.DBLRNet(width=8, blocks=1), device="abacus")
    refused("backend", clip, tmp_path / "b.mp4", model=dblr_fast.DBLRNet(width=8, blocks=1), backend="abacus",
            error=ValueError)


def test_pixel_format_that_the_encoder_or_we_do_not_take(tmp_path):
    source = make_clip(tmp_path / "a.mkv", 3, name="yuv444p16le", codec="ffv1")
    refused("libx264 cannot keep the source's pixel format yuv444p16le", source, tmp_path / "b.mp4")
    source = make_clip(tmp_path / "c.mkv", 3, name="bgr0", codec="ffv1")
    refused("cannot keep the source's pixel format bgr0", source, tmp_path / "b.mp4")
    with av.open(str(tmp_path / "d.nut"), "w") as file:
        stream = file.add_stream("rawvideo", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb555le"
        frame = av.VideoFrame(64, 48, "rgb555le")
        frame.pts = 0
        file.mux(stream.encode(frame))
    refused("pixel format rgb555le is not handled", tmp_path / "d.nut", tmp_path / "b.mkv", codec="ffv1")


def test_odd_sizes(tmp_path):
    source = make_clip(tmp_path / "a.mkv", 4, (65, 49), codec="ffv1")
    refused("libx264 does not take this video of 65x49.*not divisible by 2", source, tmp_path / "b.mp4")
    restore(source, tmp_path / "b.mkv", codec="ffv1")
    for (_, a, _), (_, b, _) in zip(decoded(source), decoded(tmp_path / "b.mkv")):
        for x, y in zip(a, b):
            np.testing.assert_array_equal(x, y)


def test_interlaced_video(tmp_path):
    source = make_clip(tmp_path / "a.mp4", options={"x264-params": "tff=1"},
                       flags=int(av.codec.context.Flags.interlaced_dct | av.codec.context.Flags.interlaced_me))
    refused("is interlaced.*bwdif", source, tmp_path / "b.mp4")


def test_frame_size_that_changes(tmp_path):
    parts = [make_clip(tmp_path / f"{w}.ts", 5, (w, 48), codec="mpeg2video", rate=Fraction(25),
                       time_base=Fraction(1, 25), stamps=list(range(5 * i, 5 * i + 5)))
             for i, w in enumerate((64, 96))]
    source = tmp_path / "a.ts"
    source.write_bytes(b"".join(part.read_bytes() for part in parts))
    refused("changes from 64x48", source, tmp_path / "b.mp4")


# ---- damage

def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * share)])
    return path


@pytest.mark.parametrize("suffix, options", [(".mkv", {}), (".mp4", {"movflags": "faststart"}),
                                             (".mp4", {"movflags": "frag_keyframe+empty_moov"}), (".avi", {})])
def test_a_truncated_file_gives_what_is_there_and_says_so(tmp_path, suffix, options):
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    base = Fraction(1, 30)
    source = cut(make_clip(tmp_path / f"a{suffix}", 90, codec=codec, container=options, smooth=False,
                           time_base=base, stamps=list(range(90)), options={"g": "10"}), 0.6)
    result = restore(source, tmp_path / f"b{suffix}", codec=codec)
    assert not result.complete and 20 <= result.frames < 80
    assert any("damaged or cut off" in warning for warning in result.warnings)
    assert len(decoded(tmp_path / f"b{suffix}")) == result.frames


def test_a_file_without_its_index_is_refused(tmp_path):
    source = cut(make_clip(tmp_path / "a.mp4", 30), 0.5)
    refused("cut off before its index", source, tmp_path / "b.mp4")


def test_whole_files_are_not_called_damaged(tmp_path):
    for suffix, codec in ((".mp4", "libx264"), (".mkv", "libx264"), (".ts", "libx264"), (".avi", "mpeg4")):
        base = Fraction(1, 30)
        source = make_clip(tmp_path / f"a{suffix}", 30, audio=suffix != ".avi", codec=codec, time_base=base,
                           stamps=list(range(30)))
        result = restore(source, tmp_path / f"b{suffix}", codec=codec)
        assert result.complete and result.frames == 30, (suffix, result)


# ---- failures leave nothing

@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("the engine broke"), MemoryError("no room")])
@pytest.mark.parametrize("name", ["b.mp4", "b.mkv", "pictures"])
def test_an_interrupted_run_leaves_the_old_output(clip, tmp_path, error, name):
    target = tmp_path / name
    if target.suffix:
        target.write_text("old")
    else:
        target.mkdir()
        (target / "00000000.png").write_text("old")
    calls = []

    def fail(y):
        calls.append(1)
        if len(calls) == 4:
            raise error
        return y

    with pytest.raises(type(error) if isinstance(error, BaseException) else error):
        restore(clip, target, Passing(fail), overwrite=True)
    assert (target if target.suffix else target / "00000000.png").read_text() == "old"
    assert leftovers(tmp_path) == []


LIMITED = """
import resource, signal, sys
sys.path.insert(0, sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from clips import Passing
import dblr_fast
from dblr_fast.errors import RunError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
try:
    dblr_fast.deblur_video(sys.argv[2], sys.argv[3], model=Passing(), codec=sys.argv[5])
except RunError as error:
    print(error)
"""


@pytest.mark.parametrize("target, codec, size", [("b.mkv", "ffv1", 60000), ("b.mp4", "libx264", 60000),
                                                 ("pictures", "libx264", 2000)])
def test_no_more_room_on_the_disk(tmp_path, target, codec, size):
    """A limit on the size of files fails in the same calls as a full disk does."""
    source = make_clip(tmp_path / "a.mkv", 40, (160, 120), codec="ffv1", smooth=False)
    done = subprocess.run([sys.executable, "-c", LIMITED, str(Path(__file__).parent), str(source),
                           str(tmp_path / target), str(size), codec], capture_output=True, text=True, check=True)
    assert f"{target} could not be written: File too large" in done.stdout
    assert done.stderr == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mkv"]


def test_an_error_of_the_muxer_is_one_sentence(clip, tmp_path, monkeypatch):
    from dblr_fast.video import writer

    def full(self):
        raise av.error.OSError(28, "No space left on device")

    monkeypatch.setattr(writer.VideoWriter, "write", lambda self, frame: self._guard(lambda: full(self)))
    with pytest.raises(RunError, match="could not be written: No space left on device"):
        restore(clip, tmp_path / "b.mp4")
    assert leftovers(tmp_path) == []


# ---- folders of pictures

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
        np.testing.assert_array_equal(cv2.imread(str(tmp_path / "out" / f"f{i + 1}.png"), cv2.IMREAD_UNCHANGED), array)


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
    restore(tmp_path / "in", tmp_path / "out", Passing(lambda y: seen.append(round(y[0, 0, 0, 0].item() * 255)) or y))
    assert seen == [1, 2, 9, 10, 11, 100]


def test_jpegs_become_pngs_of_what_was_decoded(tmp_path):
    write_pictures(tmp_path / "in", 2, suffix="jpg")
    restore(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "out" / "f1.png")), cv2.imread(str(tmp_path / "in" / "f1.jpg")))


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


# ---- real clips

REAL = [("train/gopro_max.mp4", 2), ("train/sam2_02_cups.mp4", 1)]


@pytest.mark.parametrize("name, color_range", REAL)
@pytest.mark.parametrize("target", ["b.mp4", "b.mkv"])
def test_real_clips_keep_audio_and_chroma(tmp_path, name, color_range, target):
    source = SHARED / name
    if not source.exists():
        pytest.skip(f"{source} is not on this machine")
    restore(source, tmp_path / target, Passing(brighter), limit=12, codec="ffv1" if target == "b.mkv" else "libx264")
    before, after = packets(source), packets(tmp_path / target)
    assert [p[0] for p in before] == [p[0] for p in after]
    first, second = decoded(source, 12), decoded(tmp_path / target)
    assert len(second) == 12 and {f.color_range for _, _, f in second} == {color_range}
    assert [f.colorspace for _, _, f in second] == [f.colorspace for _, _, f in first]
    if target == "b.mp4":
        assert before == after and [t for t, *_ in first] == [t for t, *_ in second]
        return
    for (_, a, _), (_, b, _) in zip(first, second):
        np.testing.assert_array_equal(a[1], b[1])
        np.testing.assert_array_equal(a[2], b[2])
        span = 255 if color_range == 2 else 219
        np.testing.assert_array_equal(np.clip(np.rint(a[0] + 0.05 * span), 0, 255), b[0])


def test_the_blurred_street_keeps_its_stamps(tmp_path):
    source = Path(__file__).resolve().parents[1] / "examples" / "street.mp4"
    result = restore(source, tmp_path / "b.mp4")
    assert (result.frames, result.width, result.height) == (20, 1280, 720)
    assert stamps(source) == stamps(tmp_path / "b.mp4")
