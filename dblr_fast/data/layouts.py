"""Which clips a folder holds: the published sets of blurred and sharp pairs, or any sharp footage."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import Refusal
from .clips import PICTURES
from .reading import VIDEOS

# The ten videos that the authors of the DVD set test on.
DVD_TEST = ("IMG_0030", "IMG_0049", "IMG_0021", "720p_240fps_2", "IMG_0032", "IMG_0033", "IMG_0031", "IMG_0003",
            "IMG_0039", "IMG_0037")
LAYOUT_WANTED = {
    "dvd": "quantitative_datasets/VIDEO/{input,GT}",
    "gopro": "{train,test}/SEQUENCE/{blur,sharp}",
    "reds": "{train,val}_{blur,sharp}/CLIP",
    "kitti": "{blur,sharp}/{image_2,image_3}/SCENE_{09,10,11}.png",
    "sharp": "videos or folders of pictures",
}


@dataclass(frozen=True)
class Footage:
    """One clip on disk: a video file, or a folder and its pictures in order."""

    path: str
    pictures: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        return self.pictures or (self.path,)


@dataclass(frozen=True)
class Clip:
    """Sharp footage, and the blurred that belongs to it frame by frame where it is there.

    first, last: the part of the clip to use, as shares of its length. pads: whether it may be shorter than a
    window, whose ends then repeat its first and last frames.
    """

    name: str
    sharp: Footage
    blurred: Footage | None = None
    first: float = 0.0
    last: float = 1.0
    pads: bool = False


@dataclass
class Found:
    """The clips of a path: those to train on, and those of its test split, if it has one."""

    path: str
    layout: str
    train: list[Clip] = field(default_factory=list)
    test: list[Clip] = field(default_factory=list)

    def held_out(self, count: int) -> Found:
        """With the last clips (of a single one its last fifth) as test split, where there is none."""
        if self.test or not count:
            return self
        if len(self.train) == 1:
            clip = self.train[0]
            return replace(self, train=[replace(clip, last=0.8)], test=[replace(clip, first=0.8)])
        count = min(count, len(self.train) - 1)
        return replace(self, train=self.train[:-count], test=self.train[-count:])


def find(path: str, layout: str, gopro_blur: str = "blur", setting: str = "data.paths") -> Found:
    """The clips of a folder (or of one video) in a layout, or in whichever is found for "auto".

    gopro_blur: as DataConfig. setting: what to name in a refusal.
    Raises Refusal where the path is missing, or holds something else than the layout says.
    """
    root = Path(path)
    if not root.exists():
        raise Refusal(f"{path} does not exist; give a folder of footage in {setting}")
    if layout == "auto":
        for finder in _FINDERS.values():
            found = finder(root, gopro_blur)
            if found is not None:
                return found
        raise Refusal(f"{path} holds no footage: {'; '.join(LAYOUT_WANTED.values())} is wanted; found {_content(root)}")
    found = _FINDERS[layout](root, gopro_blur)
    if found is None:
        raise Refusal(f"{path} is not laid out as {layout}: {LAYOUT_WANTED[layout]} is wanted; found "
                      f"{_content(root)}")
    return found


def _dvd(root: Path, _) -> Found | None:
    for base in (root / "quantitative_datasets", root):
        videos = [p for p in _folders(base) if (p / "input").is_dir() or (p / "GT").is_dir()]
        if videos:
            break
    else:
        return None
    clips = [_pair(p.name, _part(p, "input"), _part(p, "GT")) for p in videos]
    return Found(str(root), "dvd", [c for c in clips if c.name not in DVD_TEST],
                 [c for c in clips if c.name in DVD_TEST])


def _gopro(root: Path, blur: str) -> Found | None:
    def sequences(base):
        return [p for p in _folders(base) if any((p / n).is_dir() for n in ("blur", "blur_gamma"))
                or (p / "sharp").is_dir() and re.fullmatch(r"GOPR\w+", p.name)]

    splits = {name: sequences(root / name) for name in ("train", "test")}
    if not any(splits.values()):
        splits = {"train": sequences(root)}
    if not any(splits.values()):
        return None
    made = {name: [_pair(p.name, _part(p, blur), _part(p, "sharp")) for p in paths] for name, paths in splits.items()}
    return Found(str(root), "gopro", made["train"], made.get("test", []))


def _reds(root: Path, _) -> Found | None:
    made: dict[str, list[Clip]] = {"train": [], "val": []}
    seen = False
    for split, clips in made.items():
        for base in (root, root / split):
            blurred, sharp = (base / f"{split}_{kind}" for kind in ("blur", "sharp"))
            if blurred.is_dir() or sharp.is_dir():
                seen = True
                for missing in (p for p in (blurred, sharp) if not p.is_dir()):
                    raise Refusal(f"{root} is laid out as reds and has no {missing.relative_to(root)}; fetch it too")
                names = [p.name for p in _folders(sharp)]
                clips += [_pair(name, _part(blurred, name), _part(sharp, name)) for name in names]
                break
    return Found(str(root), "reds", made["train"], made["val"]) if seen else None


_SCENE = re.compile(r"(\d{6})_(\d\d)\.png")


def _kitti(root: Path, _) -> Found | None:
    clips = []
    for camera in ("image_2", "image_3"):
        blurred, sharp = root / "blur" / camera, root / "sharp" / camera
        if not (blurred.is_dir() or sharp.is_dir()):
            continue
        pair = _pair(camera, _part(blurred.parent, camera), _part(sharp.parent, camera))
        scenes: dict[str, list[int]] = {}
        for number, file in enumerate(pair.sharp.pictures):
            match = _SCENE.fullmatch(Path(file).name)
            if not match:
                raise Refusal(f"{root} is laid out as kitti and holds {file}; names like 000012_10.png are wanted")
            scenes.setdefault(match[1], []).append(number)
        for scene, numbers in scenes.items():
            parts = [Footage(f.path, tuple(f.pictures[n] for n in numbers)) for f in (pair.sharp, pair.blurred)]
            clips.append(Clip(f"{scene}_{camera}", *parts, pads=True))
    return Found(str(root), "kitti", sorted(clips, key=lambda c: c.name)) if clips else None


def _sharp(root: Path, _) -> Found | None:
    if root.is_file():
        return Found(str(root), "sharp", [Clip(root.stem, Footage(str(root)))]) if _is_video(root) else None
    clips = []
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = Path(folder)
        pictures = _pictures(here)
        if pictures:
            clips.append(Clip(str(here.relative_to(root)) if here != root else root.name, Footage(folder, pictures)))
        clips += [Clip(str((here / name).relative_to(root)), Footage(str(here / name)))
                  for name in files if _is_video(here / name)]
    return Found(str(root), "sharp", sorted(clips, key=lambda c: _natural(c.name))) if clips else None


_FINDERS = {"dvd": _dvd, "gopro": _gopro, "reds": _reds, "kitti": _kitti, "sharp": _sharp}


def _part(folder: Path, name: str) -> Footage:
    """The pictures of folder/name, of which there must be some."""
    path = folder / name
    if not path.is_dir():
        raise Refusal(f"{path} is missing; found {_content(folder)}")
    pictures = _pictures(path)
    if not pictures:
        raise Refusal(f"{path} holds no pictures; fetch them again, or take {folder} out")
    return Footage(str(path), pictures)


def _pair(name: str, blurred: Footage, sharp: Footage) -> Clip:
    """Blurred and sharp pictures of the same names."""
    ours, theirs = ([Path(p).stem for p in part.pictures] for part in (blurred, sharp))
    if ours != theirs:
        lonely = sorted(set(ours) ^ set(theirs))
        what = f"{lonely[0]} is only in one of them" if lonely else "their orders differ"
        raise Refusal(f"{blurred.path} has {len(ours)} pictures and {sharp.path} {len(theirs)}, which must be pairs of "
                      f"the same names; {what}")
    return Clip(name, sharp, blurred)


def _pictures(folder: Path) -> tuple[str, ...]:
    names = [e.name for e in os.scandir(folder)
             if Path(e.name).suffix.lower() in PICTURES and not e.name.startswith(".") and e.is_file()]
    return tuple(str(folder / name) for name in sorted(names, key=_natural))


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted((p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")),
                  key=lambda p: _natural(p.name))


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS and not path.name.startswith(".")


def _natural(name: str) -> list:
    """Sort key under which frame2 comes before frame10."""
    return [(0, int(part), part) if part.isdigit() else (1, 0, part)
            for part in re.split(r"(\d+)", name.lower()) if part]


def _content(path: Path) -> str:
    """What is found at a path, in few words."""
    if path.is_file():
        return f"a {path.suffix or 'plain'} file"
    names = sorted(p.name for p in path.iterdir())
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more if names else "an empty folder"
