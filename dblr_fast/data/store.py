"""Luma of clips, one byte a pixel, at random access: mapped from a cache on disk, or decoded each time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import weakref
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..errors import Refusal
from ..replace import replacing
from .layouts import Footage
from .reading import read_luma, video_luma

_VERSION = 1  # of what is decoded, and of the files: a new one makes them anew
_HEADER = 128  # bytes before the frames: "dblr_fast luma K H W", padded
_GIB = 2**30


class Mapped:
    """A clip's luma in a file of the cache: shape (K, H, W). It is mapped on first use in each process, and takes
    no memory but the system's own file cache."""

    def __init__(self, file: str, shape: tuple[int, int, int]):
        self.file, self.shape, self._map = file, shape, None

    def cut(self, numbers, rows: slice, columns: slice) -> np.ndarray:
        """(len(numbers), height, width) uint8 of a part of these frames."""
        if self._map is None:
            try:
                self._map = np.memmap(self.file, np.uint8, "r", _HEADER, self.shape)
            except (OSError, ValueError) as error:
                raise Refusal(f"the cached luma {self.file} cannot be mapped ({error}); is something removing files "
                              "from data.cache?") from None
        return np.stack([self._map[number, rows, columns] for number in numbers])

    def __getstate__(self):
        return {**self.__dict__, "_map": None}  # another process maps the file itself


class Decoded:
    """A clip's luma, decoded from its pictures each time: shape (K, H, W)."""

    def __init__(self, footage: Footage):
        self.footage = footage
        self.shape = (len(footage.pictures), *read_luma(footage.pictures[0]).shape)

    def cut(self, numbers, rows: slice, columns: slice) -> np.ndarray:
        """(len(numbers), height, width) uint8 of a part of these frames. Raises Refusal as `read_luma` does."""
        parts = {n: _sized(self.footage, n, self.shape[1:])[rows, columns] for n in set(numbers)}
        return np.stack([parts[number] for number in numbers])


class Store:
    """Gives the luma of clips, and keeps it in a folder.

    folder: "auto", "off" or a path, as DataConfig.cache. limit: GiB of it to use at most.
    """

    def __init__(self, folder: str, limit: float):
        self.keeps = folder != "off"
        self.left = limit * _GIB
        self._folder = None if folder in ("auto", "off") else Path(folder).expanduser()

    def open(self, footage: Footage, keep: bool = True) -> Mapped | Decoded:
        """The luma of a clip; decodes and checks all of it if it is not in the cache yet.

        keep: whether pictures go to the cache; a few are sooner decoded each time.

        Raises Refusal where it cannot be read, its pictures differ in size, or the cache cannot be written.
        """
        if footage.pictures and not (self.keeps and keep):
            return Decoded(footage)
        file = self.folder() / f"{re.sub(r'[^A-Za-z0-9._-]', '_', Path(footage.path).name)[:60]}-{_key(footage)}.luma"
        shape = _shape_of(file)
        if shape is None:
            if footage.pictures:
                decoded = Decoded(footage)
                if np.prod(decoded.shape, dtype=np.int64) > self.left:
                    return decoded
            self._fill(file, footage)
            shape = _shape_of(file)
        self.left -= int(np.prod(shape, dtype=np.int64))
        return Mapped(str(file), shape)

    def folder(self) -> Path:
        if self._folder is None and not self.keeps:
            self._folder = Path(tempfile.mkdtemp(prefix="dblr_fast_luma_"))
            weakref.finalize(self, _remove, self._folder, os.getpid())
        elif self._folder is None:
            self._folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dblr_fast" / "luma"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refusal(f"the folder {self._folder} for decoded luma cannot be made ({error.strerror}); give another "
                          "data.cache") from None
        return self._folder

    def _fill(self, file: Path, footage: Footage) -> None:
        try:
            with replacing(file) as temporary, open(temporary, "wb") as out:
                out.write(b"\0" * _HEADER)
                count, size, shape = 0, 0, None
                for luma in _frames(footage):
                    shape, count, size = luma.shape, count + 1, size + luma.size
                    if size > self.left and not footage.pictures:
                        raise Refusal(f"the luma of {footage.path} does not fit into the rest of data.cache_limit "
                                      f"({max(self.left, 0) / _GIB:.2f} GiB); raise it, or give fewer videos")
                    out.write(luma)
                out.seek(0)
                out.write(f"dblr_fast luma {count} {shape[0]} {shape[1]}".encode().ljust(_HEADER))
        except OSError as error:
            raise Refusal(f"decoded luma cannot be written to {file.parent} ({error.strerror}); give another "
                          "data.cache, or off") from None


def _frames(footage: Footage):
    if not footage.pictures:
        yield from video_luma(footage.path)
        return
    first = read_luma(footage.pictures[0])
    yield first
    for number in range(1, len(footage.pictures)):
        yield _sized(footage, number, first.shape)


@lru_cache(maxsize=8)
def _recent(path: str, *_) -> np.ndarray:
    """`read_luma`, which remembers the last few: one sample looks at the same pictures several times."""
    return read_luma(path)


def _sized(footage: Footage, number: int, shape) -> np.ndarray:
    """A picture of a clip, all of which must have one size."""
    path = footage.pictures[number]
    try:
        stat = os.stat(path)
    except OSError as error:
        raise Refusal(f"{path} cannot be read ({error.strerror})") from None
    luma = _recent(path, stat.st_size, stat.st_mtime_ns)
    if luma.shape != tuple(shape):
        raise Refusal(f"{path} is {luma.shape[1]}x{luma.shape[0]} and the first picture of its "
                      f"folder {shape[1]}x{shape[0]}; all pictures of a clip must have one size")
    return luma


def _key(footage: Footage) -> str:
    """Changes whenever a file of the clip does."""
    facts = []
    for file in footage.files:
        stat = os.stat(file)
        facts.append((os.path.basename(file), stat.st_size, stat.st_mtime_ns))
    text = json.dumps([_VERSION, os.path.realpath(footage.path), facts])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _shape_of(file: Path) -> tuple[int, int, int] | None:
    """What a file of the cache holds, or None unless it is there and whole."""
    try:
        with open(file, "rb") as source:
            words = source.read(_HEADER).split()
        shape = tuple(int(word) for word in words[2:5])
        whole = words[:2] == [b"dblr_fast", b"luma"] and len(shape) == 3
        return shape if whole and file.stat().st_size == _HEADER + int(np.prod(shape, dtype=np.int64)) else None
    except (OSError, ValueError):
        return None


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a worker that was forked off
        shutil.rmtree(folder, ignore_errors=True)
