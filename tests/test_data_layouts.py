"""What is found in a folder: published layouts, any sharp footage, and what is refused."""

import shutil

import pytest
from clips import make_clip
from data_cases import dvd, gopro, kitti, reds, settings, write_pictures

from dblr_fast.data import training_set, validation_set
from dblr_fast.data.layouts import LAYOUT_WANTED, find
from dblr_fast.errors import Refusal

MAKE = {"dvd": dvd, "gopro": gopro, "reds": reds, "kitti": kitti}
CLIPS = {
    "dvd": (["IMG_0001", "IMG_0002"], ["IMG_0030"]),
    "gopro": (["GOPR0372_07_00", "GOPR0374_11_00"], ["GOPR0384_11_00"]),
    "reds": (["000", "001"], ["000"]),
    "kitti": ([f"{n:06d}_{camera}" for n in range(3) for camera in ("image_2", "image_3")], []),
}


def names(clips):
    return [clip.name for clip in clips]


@pytest.mark.parametrize("name", MAKE)
def test_published_layouts(name, tmp_path):
    root = MAKE[name](tmp_path / "set")
    for layout in (name, "auto"):
        found = find(str(root), layout)
        assert (found.layout, names(found.train), names(found.test)) == (name, *CLIPS[name])
        for clip in found.train + found.test:
            assert len(clip.blurred.pictures) == len(clip.sharp.pictures) == (3 if name == "kitti" else 8)
            assert clip.blurred.path != clip.sharp.path
    dataset = training_set(settings(root), 3, 0)
    assert dataset[0]["blurred"].shape == (3, 24, 24) and dataset[0]["sharp"].shape == (1, 24, 24)
    windows = validation_set(settings(root, validation_windows=2, validation_size=0), 3)
    assert len(windows) == 2


def test_the_split_of_dvd_is_the_authors(tmp_path):
    from dblr_fast.data.layouts import DVD_TEST

    root = dvd(tmp_path, ["IMG_0001", *DVD_TEST], count=3)
    found = find(str(root / "quantitative_datasets"), "dvd")
    assert names(found.train) == ["IMG_0001"] and sorted(names(found.test)) == sorted(DVD_TEST) and len(DVD_TEST) == 10


def test_gopro_takes_the_kind_of_blur_asked_for(tmp_path):
    root = gopro(tmp_path / "set")
    for kind in ("blur", "blur_gamma"):
        assert {clip.blurred.path.rpartition("/")[2] for clip in find(str(root), "auto", kind).train} == {kind}
    shutil.rmtree(root / "train" / "GOPR0374_11_00" / "blur_gamma")
    with pytest.raises(Refusal, match="GOPR0374_11_00/blur_gamma is missing; found blur, sharp"):
        training_set(settings(root, gopro_blur="blur_gamma"), 3, 0)


def test_a_split_folder_of_its_own(tmp_path):
    root = gopro(tmp_path / "set")
    assert names(find(str(root / "train"), "auto").train) == CLIPS["gopro"][0]
    nested = tmp_path / "reds"
    for part in ("blur", "sharp"):
        write_pictures(nested / "train" / f"train_{part}" / "007")
    assert names(find(str(nested), "auto").train) == ["007"]


def test_sharp_footage_anywhere_below(tmp_path):
    write_pictures(tmp_path / "b" / "clip10")
    write_pictures(tmp_path / "b" / "clip9")
    write_pictures(tmp_path / ".hidden")
    make_clip(tmp_path / "a.mp4")
    (tmp_path / "notes.txt").write_text("no footage")
    assert names(find(str(tmp_path), "auto").train) == ["a.mp4", "b/clip9", "b/clip10"]
    assert names(find(str(tmp_path / "a.mp4"), "auto").train) == ["a"]
    assert names(find(str(tmp_path / "b" / "clip9"), "sharp").train) == ["clip9"]


def test_pictures_come_in_natural_order(tmp_path):
    write_pictures(tmp_path, count=12, digits=1)
    pictures = find(str(tmp_path), "sharp").train[0].sharp.pictures
    assert [int(p.rpartition("/")[2][:-4]) for p in pictures] == list(range(12))


def test_clips_held_out(tmp_path):
    for name in "abcd":
        write_pictures(tmp_path / name)
    found = find(str(tmp_path), "auto")
    assert names(found.held_out(1).train) == ["a", "b", "c"] and names(found.held_out(1).test) == ["d"]
    assert names(found.held_out(9).train) == ["a"]
    one = find(str(tmp_path / "a"), "auto").held_out(1)
    assert (one.train[0].last, one.test[0].first) == (0.8, 0.8)
    assert found.held_out(0).test == []


@pytest.mark.parametrize("layout", [name for name in LAYOUT_WANTED])
def test_another_layout_is_refused(layout, tmp_path):
    """One sentence that says what was wanted and what was found."""
    (tmp_path / "documents").mkdir()
    with pytest.raises(Refusal) as caught:
        find(str(tmp_path), layout)
    assert str(caught.value) == (f"{tmp_path} is not laid out as {layout}: {LAYOUT_WANTED[layout]} is wanted; found "
                                 "documents")


@pytest.mark.parametrize("name", MAKE)
def test_published_sets_are_not_taken_for_each_other(name, tmp_path):
    root = MAKE[name](tmp_path / "set")
    for other in MAKE:
        if other != name:
            with pytest.raises(Refusal, match=f"is not laid out as {other}"):
                training_set(settings(root, layouts=(other,)), 3, 0)


def test_missing_and_empty(tmp_path):
    (tmp_path / "empty").mkdir()
    for path, said in ((tmp_path / "none", "none does not exist; give a folder of footage in data.paths"),
                       (tmp_path / "empty", "empty holds no footage: .*; found an empty folder")):
        with pytest.raises(Refusal, match=said) as caught:
            training_set(settings(path), 3, 0)
        assert "\n" not in str(caught.value)
    write_pictures(tmp_path / "good")
    with pytest.raises(Refusal, match="give a folder of footage in data.validation_paths"):
        validation_set(settings(tmp_path / "good", validation_paths=(str(tmp_path / "none"),)), 3)
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(Refusal, match="found a .txt file"):
        find(str(tmp_path / "file.txt"), "auto")


@pytest.mark.parametrize("name, part, said", [
    ("dvd", "quantitative_datasets/IMG_0002/GT", "IMG_0002/GT is missing; found input"),
    ("gopro", "train/GOPR0374_11_00/sharp", "GOPR0374_11_00/sharp is missing; found blur, blur_gamma"),
    ("reds", "train_sharp", "has no train_sharp; fetch it too"),
    ("reds", "train_blur/001", "train_blur/001 is missing; found 000"),
    ("kitti", "sharp/image_3", "sharp/image_3 is missing; found image_2")])
def test_half_of_a_set_is_refused(name, part, said, tmp_path):
    root = MAKE[name](tmp_path / "set")
    shutil.rmtree(root / part)
    for layout in (name, "auto"):
        with pytest.raises(Refusal, match=said):
            find(str(root), layout)


def test_pictures_without_a_partner_are_refused(tmp_path):
    root = dvd(tmp_path)
    (root / "quantitative_datasets" / "IMG_0002" / "GT" / "00003.jpg").unlink()
    with pytest.raises(Refusal, match="has 8 pictures and .*GT 7, which must be pairs .*; 00003 is only in one"):
        find(str(root), "dvd")
    for picture in (root / "quantitative_datasets" / "IMG_0001" / "input").iterdir():
        picture.unlink()
    with pytest.raises(Refusal, match="IMG_0001/input holds no pictures"):
        find(str(root), "dvd")


def test_a_test_split_is_not_trained_on(tmp_path):
    root = dvd(tmp_path, ["IMG_0030", "IMG_0049"])
    with pytest.raises(Refusal, match="holds nothing to train on, only the test split of dvd"):
        training_set(settings(root), 3, 0)
    write_pictures(tmp_path / "own")
    windows = validation_set(settings(tmp_path / "own", validation_paths=(str(root),), validation_windows=4), 3)
    assert {w["name"].split()[0] for w in windows} == {"IMG_0030", "IMG_0049"}
