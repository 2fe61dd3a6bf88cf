"""Folders of pictures, in and out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import Refusal, RunError
from .picture import ArrayPicture

SUFFIXES = frozenset(".png .jpg .jpeg .jpe .bmp .tif .tiff .webp .ppm .pgm .pnm .jp2".split())
_JPEG = frozenset(".jpg .jpeg .jpe".split())


def natural(name: str) -> list:
    """Sort key under which frame2 comes before frame10."""
    return [(0, int(part), part) if part.isdigit() else (1, 0, part)
            for part in re.split(r"(\d+)", name.lower()) if part]


def opencv():
    """The cv2 module. Raises Refusal when it is not installed."""
    try:
        import cv2
    except ImportError as error:
        raise Refusal(f"pictures need OpenCV, which cannot be imported ({error}); "
                      "pip install opencv-python-headless") from None
    return cv2


class FolderReader:
    """The pictures of a folder in natural order of their names; 8 or 16 bits, gray, colour, with or without
    alpha.

    range: "auto" means full here, as pictures have it.
    Raises Refusal for an empty folder, and in passing for a file that is no picture or has another size.
    """

    def __init__(self, path: Path, range: str = "auto"):
        self.path, self.full, self.damage = path, range != "limited", []
        self._cv2 = opencv()
        self.files = sorted((p for p in path.iterdir() if p.suffix.lower() in SUFFIXES
                             and not p.name.startswith(".") and p.is_file()), key=lambda p: natural(p.name))
        if not self.files:
            raise Refusal(f"the folder {path} holds no pictures ({', '.join(sorted(SUFFIXES))})")
        stems: dict[str, str] = {}
        for file in self.files:
            twin = stems.setdefault(file.stem, file.name)
            if twin != file.name:
                raise Refusal(f"the folder {path} holds both {twin} and {file.name}, which would become one "
                              "file; move one of them away")
        self.first = self._read(self.files[0])

    total = property(lambda self: len(self.files))
    complete = True

    def pictures(self, on_packet=None, limit: int | None = None) -> Iterator[ArrayPicture]:
        """All pictures, or the first `limit`; on_packet is never called."""
        for i, file in enumerate(self.files[:limit]):
            picture = self.first if i == 0 else self._read(file)
            if picture.size != self.first.size:
                (width, height), (w, h) = self.first.size, picture.size
                raise Refusal(f"{file} is {w}x{h}, the first picture is {width}x{height}; all frames of a "
                              "clip must have one size")
            yield picture

    def close(self):
        pass

    def _read(self, file):
        cv2 = self._cv2
        # A JPEG's orientation is applied, because what is written has no such tag; others keep their alpha.
        turned = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
        flags = turned if file.suffix.lower() in _JPEG else cv2.IMREAD_UNCHANGED
        try:
            data = np.fromfile(file, np.uint8)
            array = cv2.imdecode(data, flags) if data.size else None
        except OSError as error:
            raise Refusal(f"{file} cannot be read ({error.strerror})") from None
        except cv2.error:
            array = None
        if array is None:
            raise Refusal(f"{file} is not a picture that can be read")
        if array.dtype not in (np.uint8, np.uint16) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
            channels = array.shape[2] if array.ndim == 3 else 1
            raise Refusal(f"{file} holds {array.dtype} samples in {channels} channels; gray or colour of 8 "
                          "or 16 bits is wanted")
        return ArrayPicture(array, file.stem, self.full)


class FolderWriter:
    """Writes pictures as PNG, which loses nothing."""

    warnings: list[str] = []

    def __init__(self, folder: Path):
        self.folder, self._count = folder, 0
        self._cv2 = opencv()

    def write(self, array: np.ndarray, name: str = "") -> None:
        """A gray, B, G, R or B, G, R, A array; without a name the files are numbered from 00000000."""
        path = self.folder / f"{name or format(self._count, '08')}.png"
        self._count += 1
        done, data = self._cv2.imencode(".png", array)
        if not done:
            raise RunError(f"{path.name}: a picture of shape {array.shape} could not be coded as PNG")
        path.write_bytes(data)
