"""What must be refused in one sentence, what damage is told, and what must not be left behind."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from clips import Passing, decoded, leftovers, make_clip, refused, restore

import dblr_fast
from dblr_fast.errors import RunError


@pytest.fixture
def clip(tmp_path):
    return make_clip(tmp_path / "clip.mp4", 6)


# ---- refusals

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
    refused("cannot hold this libvpx-vp9 video .*only supported in MP4", clip, tmp_path / "b.mov",
            codec="libvpx-vp9")
    refused("no constant rate factor", clip, tmp_path / "b.mkv", codec="ffv1", crf=10)
    refused("crf must lie between", clip, tmp_path / "b.mp4", crf=1000)


def test_options_out_of_range(clip, tmp_path):
    refused("range must be one of", clip, tmp_path / "b.mp4", range="narrow")
    refused("fps is for making", clip, tmp_path / "b.mp4", fps=10)
    refused("there is no model 'nobody'", clip, tmp_path / "b.mp4", model="nobody")
    model = dblr_fast.DBLRNet(width=8, blocks=1)
    refused("there is no device", clip, tmp_path / "b.mp4", model=model, device="abacus")
    refused("backend", clip, tmp_path / "b.mp4", model=model, backend="abacus", error=ValueError)


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
    flags = av.codec.context.Flags
    source = make_clip(tmp_path / "a.mp4", options={"x264-params": "tff=1"},
                       flags=int(flags.interlaced_dct | flags.interlaced_me))
    refused("is interlaced.*bwdif", source, tmp_path / "b.mp4")


def test_frame_size_that_changes(tmp_path):
    parts = [make_clip(tmp_path / f"{w}.ts", 5, (w, 48), codec="mpeg2video", rate=Fraction(25),
                       time_base=Fraction(1, 25), stamps=list(range(5 * i, 5 * i + 5)))
             for i, w in enumerate((64, 96))]
    source = tmp_path / "a.ts"
    source.write_bytes(b"".join(part.read_bytes() for part in parts))
    refused("changes from 64x48", source, tmp_path / "b.mp4")


@pytest.mark.parametrize("name", ["with space.mp4", "http:colon.mp4", "ümläut.mp4", "-dash.mp4", "100%d.mp4"])
def test_names_of_every_kind_are_taken(clip, tmp_path, monkeypatch, name):
    clip.rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert restore(name, "out " + name).frames == 6


# ---- damage

def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * share)])
    return path


@pytest.mark.parametrize("suffix, options", [
    (".mkv", {}), (".mp4", {"movflags": "faststart"}), (".mp4", {"movflags": "frag_keyframe+empty_moov"}),
    (".avi", {})])
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

@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
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
            raise error("the engine broke")
        return y

    with pytest.raises(error):
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
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(Path(__file__).parent), str(source), str(tmp_path / target),
         str(size), codec], capture_output=True, text=True, check=True)
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
