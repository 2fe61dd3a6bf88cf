"""Reading footage whole or not at all, and the cache of its luma."""

import os

import cv2
import numpy as np
import pytest
from clips import make_clip
from data_cases import colours, dvd, settings, write_pictures

from dblr_fast.data import load_luma_clip, store, training_set
from dblr_fast.data.layouts import find
from dblr_fast.data.reading import _cut_off
from dblr_fast.data.store import Decoded, Mapped, Store
from dblr_fast.errors import Refusal

EVERYTHING = slice(None), slice(None)


def footage(path):
    return find(str(path), "sharp").train[0].sharp


def whole(clip):
    return np.asarray(clip.cut(range(clip.shape[0]), *EVERYTHING))


def test_luma_of_pictures_and_of_video(tmp_path):
    """What is kept is the luma that load_luma_clip reads, rounded to bytes."""
    pictures = write_pictures(tmp_path / "pictures", suffix=".jpg")
    limited = make_clip(tmp_path / "limited.mp4")
    full = make_clip(tmp_path / "full.mkv", codec="ffv1", color_range=2)
    for path in (pictures, limited, full):
        kept = Store(str(tmp_path / "cache"), 1).open(footage(path))
        wanted = load_luma_clip(path, dtype=np.uint8)
        assert isinstance(kept, Mapped) and kept.shape == wanted.shape
        # cv2 rounds colours to luma in fixed point: one level now and then.
        assert np.abs(whole(kept).astype(int) - wanted).max() <= (path == pictures)
    ten = make_clip(tmp_path / "ten.mkv", name="yuv420p10le", codec="ffv1")
    assert whole(Store(str(tmp_path / "cache"), 1).open(footage(ten))).std() > 10


def test_decoding_each_time_gives_the_same(tmp_path):
    path = footage(write_pictures(tmp_path / "clip", suffix=".jpg"))
    decoded, kept = Store("off", 1).open(path), Store(str(tmp_path / "cache"), 1).open(path)
    assert isinstance(decoded, Decoded) and np.array_equal(whole(decoded), whole(kept))
    part = [3, 1, 1, 7], slice(10, 30), slice(5, 50)
    assert np.array_equal(decoded.cut(*part), kept.cut(*part)) and kept.cut(*part).shape == (4, 20, 45)


def test_a_clip_is_decoded_once(tmp_path, monkeypatch):
    folder, path = tmp_path / "cache", write_pictures(tmp_path / "clip")
    before = whole(Store(str(folder), 1).open(footage(path)))
    with monkeypatch.context() as patched:
        patched.setattr(store, "_frames", lambda _: pytest.fail("decoded again"))
        assert np.array_equal(whole(Store(str(folder), 1).open(footage(path))), before)
    # Another picture in its place, an hour later: decoded anew.
    cv2.imwrite(str(path / "00003.png"), colours(60, 80, 9))
    after = whole(Store(str(folder), 1).open(footage(path)))
    assert [n for n in range(8) if not np.array_equal(before[n], after[n])] == [3]


def test_a_damaged_cache_is_made_anew(tmp_path):
    folder, path = tmp_path / "cache", footage(write_pictures(tmp_path / "clip"))
    before = whole(Store(str(folder), 1).open(path))
    file, = folder.iterdir()
    for damage in (file.read_bytes()[:-100], b"", b"something else"):
        file.write_bytes(damage)
        assert np.array_equal(whole(Store(str(folder), 1).open(path)), before)
    assert [p.name for p in folder.iterdir()] == [file.name]


def test_the_cache_goes_where_the_system_keeps_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    Store("auto", 1).open(footage(write_pictures(tmp_path / "clip")))
    assert len(list((tmp_path / "xdg" / "dblr_fast" / "luma").iterdir())) == 1


def test_the_cache_is_bounded(tmp_path):
    """Pictures beyond the limit are decoded each time; a video beyond it is refused, with what to do."""
    paths = [footage(write_pictures(tmp_path / name)) for name in "ab"]
    bytes_of_one = 8 * 60 * 80
    kept = Store(str(tmp_path / "cache"), 1.5 * bytes_of_one / 2**30)
    assert [type(kept.open(path)) for path in paths] == [Mapped, Decoded]
    assert len(list((tmp_path / "cache").iterdir())) == 1
    video = footage(make_clip(tmp_path / "c.mp4"))
    with pytest.raises(Refusal, match=r"c.mp4 does not fit into the rest of data.cache_limit \(0.00 GiB\); raise it"):
        Store(str(tmp_path / "cache"), 1e-6).open(video)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_off_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "footage").mkdir()
    make_clip(tmp_path / "footage" / "a.mp4")
    dataset = training_set(settings(tmp_path / "footage"), 5, 0)
    assert len(list((tmp_path / "temporary").rglob("*.luma"))) == 1
    dataset[0]
    del dataset
    assert not list((tmp_path / "temporary").iterdir())


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    clip = footage(write_pictures(tmp_path / "clip"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Refusal, match="the folder .*file/luma for decoded luma cannot be made .*; give another "
                                      "data.cache"):
        Store(str(tmp_path / "file" / "luma"), 1).open(clip)

    def full(footage):
        yield np.zeros((4, 4), np.uint8)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_frames", full)
    with pytest.raises(Refusal, match=r"cannot be written to .* \(No space left on device\); give another data.cache"):
        Store(str(tmp_path / "cache"), 1).open(clip)
    assert not list((tmp_path / "cache").iterdir())


def cut_off(data):
    return data[:len(data) * 2 // 3]


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("damage, said", [
    (cut_off, "is cut off before its end; fetch it again|is not a picture that can be read"),
    (lambda data: b"", "is empty"), (lambda data: b"no picture at all", "is not a picture that can be read")])
@pytest.mark.parametrize("cache", ["on", "off"])
def test_damaged_pictures_are_refused(suffix, damage, said, cache, tmp_path):
    """When the set is made where luma is cached, and when the sample is asked for where it is not."""
    path = write_pictures(tmp_path / "clip", suffix=suffix, count=5)
    file = path / f"00002{suffix}"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(Refusal, match=said) as caught:
        dataset = training_set(settings(path, cache="off" if cache == "off" else tmp_path / "cache", held_out=0), 3, 0)
        for number in range(40):
            dataset[number]
    assert file.name in str(caught.value) and "\n" not in str(caught.value)


def test_a_jpeg_with_a_preview_is_whole(tmp_path):
    """An embedded preview ends before the picture does, and does not stand for its end."""
    path = write_pictures(tmp_path / "clip", count=2, suffix=".jpg")
    whole_file = (path / "00000.jpg").read_bytes()
    preview = b"\xff\xe1" + (len(whole_file) + 2).to_bytes(2, "big") + whole_file
    with_preview = whole_file[:2] + preview + whole_file[2:]
    (path / "00001.jpg").write_bytes(with_preview + b"\0" * 30)
    luma = whole(Store("off", 1).open(footage(path)))
    assert np.array_equal(luma[0], luma[1])
    # Some versions of OpenCV read what is there of a file cut off, and fill the rest with grey.
    png = write_pictures(tmp_path / "png", count=1) / "00000.png"
    for data in (with_preview, whole_file, png.read_bytes()):
        assert not _cut_off(data + b"\0" * 30) and not _cut_off(data)
        assert _cut_off(data[:-5]) and _cut_off(data[:-300])


@pytest.mark.parametrize("damage, said", [
    (lambda data: data[:len(data) * 2 // 3], "a.mkv is damaged|a.mkv .*could not be decoded"),
    (lambda data: b"", "a.mkv cannot be read as a video"),
    (lambda data: b"text" * 99, "a.mkv cannot be read as a video")])
def test_damaged_videos_are_refused(damage, said, tmp_path):
    video = make_clip(tmp_path / "a.mkv", frames=60)
    video.write_bytes(damage(video.read_bytes()))
    with pytest.raises(Refusal, match=said) as caught:
        training_set(settings(video, cache=tmp_path / "cache"), 3, 0)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").iterdir())


def test_a_video_without_pictures_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"\0" * 5000)
    with pytest.raises(Refusal, match="a.mp4 cannot be read as a video"):
        training_set(settings(tmp_path), 3, 0)


@pytest.mark.parametrize("cache", ["on", "off"])
def test_pictures_of_several_sizes_are_refused(cache, tmp_path):
    path = write_pictures(tmp_path / "clip", count=5)
    cv2.imwrite(str(path / "00003.png"), colours(60, 84))
    with pytest.raises(Refusal, match="00003.png is 84x60 and the first picture of its folder 80x60; all pictures"):
        dataset = training_set(settings(path, cache="off" if cache == "off" else tmp_path / "cache", held_out=0), 3, 0)
        for number in range(40):
            dataset[number]


def test_pairs_of_several_sizes_are_refused(tmp_path):
    root = dvd(tmp_path)
    for picture in (root / "quantitative_datasets" / "IMG_0001" / "GT").iterdir():
        cv2.imwrite(str(picture), colours(62, 80))
    with pytest.raises(Refusal, match="IMG_0001/input are 80x60 and those of .*GT 80x62; pairs must have one size"):
        training_set(settings(root), 3, 0)


def test_a_file_removed_meanwhile_is_named(tmp_path):
    clip = Store("off", 1).open(footage(write_pictures(tmp_path / "clip")))
    (tmp_path / "clip" / "00004.png").unlink()
    with pytest.raises(Refusal, match=r"00004.png cannot be read \(No such file or directory\)"):
        clip.cut([4], *EVERYTHING)
    with pytest.raises(Refusal, match="x.luma cannot be mapped"):
        Mapped(str(tmp_path / "x.luma"), (1, 2, 3)).cut([0], *EVERYTHING)


def test_clips_of_one_name_do_not_share_luma(tmp_path):
    """Nor do files of the same names, sizes and times in other folders."""
    kept = Store(str(tmp_path / "cache"), 1)
    clips = []
    for name, seed in (("a", 0), ("b", 5)):
        folder = write_pictures(tmp_path / name / "clip", seed=seed, suffix=".bmp")
        for file in folder.iterdir():
            os.utime(file, (1e9, 1e9))
        clips.append(kept.open(footage(folder)))
    a, b = clips
    assert a.file != b.file and not np.array_equal(whole(a), whole(b))
