"""What lies beside the picture: sound, subtitles, tags, chapters, HDR data; and real clips."""

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from clips import SHARED, Passing, brighter, decoded, make_clip, packets, restore, stamps

from dblr_fast.video import run as video_run


@pytest.fixture
def clip(tmp_path):
    return make_clip(tmp_path / "clip.mp4", 6)


# ---- streams and tags

def test_audio_is_copied_byte_for_byte(tmp_path):
    source = make_clip(tmp_path / "a.mp4", 30, audio=True)
    result = restore(source, tmp_path / "b.mp4")
    assert packets(source) == packets(tmp_path / "b.mp4")
    assert len(packets(source)) > 10 and result.warnings == ()


def test_matroska_keeps_sound_that_starts_before_zero(tmp_path):
    source = make_clip(tmp_path / "a.mp4", 30, audio=True, time_base=Fraction(1, 1000),
                       stamps=[40 * i for i in range(30)])
    before = packets(source)
    assert before[0][1] < 0  # the encoder's priming
    result = restore(source, tmp_path / "b.mkv")
    after = packets(tmp_path / "b.mkv")
    assert [p[0] for p in before] == [p[0] for p in after]
    assert max(abs(a[1] - b[1]) for a, b in zip(before, after)) <= Fraction(1, 1000)
    assert stamps(tmp_path / "b.mkv") == stamps(source)
    assert not any("later" in warning for warning in result.warnings)


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
    def prepare(file, stream):
        file.metadata.update(title="A title", comment="so")
        stream.metadata.update(language="fra")

    source = make_clip(tmp_path / "a.mp4", name="yuv420p10le", rotation=90, prepare=prepare,
                       options={"chroma_sample_location": "topleft"}, sample_aspect_ratio=Fraction(4, 3),
                       color_range=1, colorspace=9, color_primaries=9, color_trc=16)
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
    assert not any("left out" in warning for warning in result.warnings)
    with av.open(str(tmp_path / "b.mkv")) as file:
        (cover,) = [s for s in file.streams.video if s.disposition & av.stream.Disposition.attached_pic]
        assert [bytes(p) for p in file.demux(cover) if p.size] == [data.tobytes()]


# ---- real clips

REAL = [("train/gopro_max.mp4", 2), ("train/sam2_02_cups.mp4", 1)]


@pytest.mark.parametrize("name, color_range", REAL)
@pytest.mark.parametrize("target", ["b.mp4", "b.mkv"])
def test_real_clips_keep_audio_and_chroma(tmp_path, name, color_range, target):
    source = SHARED / name
    if not source.exists():
        pytest.skip(f"{source} is not on this machine")
    codec = "ffv1" if target == "b.mkv" else "libx264"
    restore(source, tmp_path / target, Passing(brighter), limit=12, codec=codec)
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
    assert (result.width, result.height, result.frames) == (1280, 720, len(stamps(source)))
    assert stamps(source) == stamps(tmp_path / "b.mp4")
