"""Pixel formats: where the samples of each component lie, as strided numpy views of a frame's memory."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ..errors import Refusal


@dataclass(frozen=True)
class Component:
    """One of Y, U, V, A or R, G, B, A: its plane, and step and offset within a line in bytes."""

    plane: int
    step: int
    offset: int
    chroma: bool = False


@dataclass(frozen=True)
class Layout:
    """A pixel format that can be read and written.

    kind: "yuv" (a gray format is one with luma alone) or "rgb". bits: of a sample. shift: samples are kept
    that many bits up (p010). components: in the order Y, U, V, A or R, G, B, A.
    """

    name: str
    kind: str
    bits: int
    shift: int
    components: tuple[Component, ...]
    subsampling: str = ""

    @property
    def dtype(self):
        return np.dtype("u1") if self.bits == 8 else np.dtype("<u2")

    @property
    def alpha(self) -> bool:
        return len(self.components) == 4


_PLANAR = re.compile(r"yuv(a|j)?(420|422|440|444|410|411)p(9|10|12|14|16)?(le)?")
_GRAY = re.compile(r"gray(9|10|12|14|16)?(le)?")
_SEMI = re.compile(r"(nv)(12|21|16|24|42)|(p)([024])(10|12|16)le")
_GBR = re.compile(r"gbr(a)?p(9|10|12|14|16)?(le)?")
_PACKED = re.compile(r"([rgba0]{3,4})(24|48le|64le)?")
_REPACKED = {"yuyv422": "yuv422p", "uyvy422": "yuv422p", "yvyu422": "yuv422p", "y210le": "yuv422p10le",
             "pal8": "bgra"}


def unpacked_name(name: str) -> str:
    """The planar format that holds the very samples of a packed one; other names as they are."""
    return _REPACKED.get(name, name)


def layout(name: str) -> Layout:
    """The layout of a pixel format by FFmpeg's name. Raises Refusal for one that is not handled."""
    for parse in (_planar, _gray, _semi, _gbr, _packed):
        found = parse(name)
        if found is not None:
            return found
    raise Refusal(f"pixel format {name} is not handled; convert the video to yuv420p, yuv422p10le or another "
                  "planar format first")


def _depth(digits, little):
    """Bits of a sample, or None when a deep format is not little endian."""
    bits = int(digits or 8)
    return bits if (bits > 8) == bool(little) else None


def _planar(name):
    match = _PLANAR.fullmatch(name)
    bits = match and _depth(match[3], match[4])
    if not bits:
        return None
    size = 1 if bits == 8 else 2
    planes = [Component(i, size, 0, chroma=i in (1, 2)) for i in range(4 if match[1] == "a" else 3)]
    return Layout(name, "yuv", bits, 0, tuple(planes), match[2])


def _gray(name):
    match = _GRAY.fullmatch(name)
    bits = match and _depth(match[1], match[2])
    return Layout(name, "yuv", bits, 0, (Component(0, 1 if bits == 8 else 2, 0),), "gray") if bits else None


def _semi(name):
    match = _SEMI.fullmatch(name)
    if not match:
        return None
    if match[1]:
        bits, shift, kind = 8, 0, {"12": "420", "21": "420", "16": "422", "24": "444", "42": "444"}[match[2]]
    else:
        bits, kind = int(match[5]), {"0": "420", "2": "422", "4": "444"}[match[4]]
        shift = 16 - bits
    size = 1 if bits == 8 else 2
    u, v = (1, 0) if match[2] in ("21", "42") else (0, 1)
    chroma = [Component(1, 2 * size, offset * size, True) for offset in (u, v)]
    return Layout(name, "yuv", bits, shift, (Component(0, size, 0), *chroma), kind)


def _gbr(name):
    match = _GBR.fullmatch(name)
    bits = match and _depth(match[2], match[3])
    if not bits:
        return None
    size = 1 if bits == 8 else 2
    order = (2, 0, 1, 3) if match[1] else (2, 0, 1)
    return Layout(name, "rgb", bits, 0, tuple(Component(plane, size, 0) for plane in order))


def _packed(name):
    match = _PACKED.fullmatch(name)
    if not match or not set("rgb") <= set(match[1]) or len(set(match[1])) != len(match[1]):
        return None
    size = 2 if match[2] in ("48le", "64le") else 1
    step = len(match[1]) * size
    order = "rgba" if "a" in match[1] else "rgb"
    parts = tuple(Component(0, step, match[1].index(letter) * size) for letter in order)
    return Layout(name, "rgb", 8 * size, 0, parts)


def views(frame, form: Layout) -> list[np.ndarray]:
    """One array (height, width) for each component; they share the frame's memory, padding left out.

    Writing into them changes the frame: call frame.make_writable() before taking them, because a decoded
    frame's memory may still serve as the reference of frames to come.
    """
    arrays = []
    planes = frame.planes
    for part in form.components:
        plane = planes[part.plane]
        if plane.line_size < 0:
            raise Refusal("the video stores its pictures bottom-up, which is not handled; convert it first")
        width, height = (plane.width, plane.height) if part.chroma else (frame.width, frame.height)
        arrays.append(np.ndarray((height, width), form.dtype, plane, part.offset,
                                 (plane.line_size, part.step)))
    return arrays


def repacked(frame, source: Layout, name: str):
    """A new frame in the format `name` that holds the same samples (the formats must have the same
    components)."""
    import av

    target = layout(name)
    fresh = av.VideoFrame(frame.width, frame.height, name)
    for array, copy in zip(views(frame, source), views(fresh, target)):
        copy[...] = (array >> source.shift) << target.shift if source.shift != target.shift else array
    fresh.pts, fresh.duration = frame.pts, frame.duration
    if frame.time_base is not None:
        fresh.time_base = frame.time_base
    fresh.color_range, fresh.colorspace = frame.color_range, frame.colorspace
    fresh.color_primaries, fresh.color_trc = frame.color_primaries, frame.color_trc
    return fresh


def same_samples(form: Layout) -> list[str]:
    """Formats that hold the same samples, the nearest first; encoders differ in which of them they take."""
    deep = "" if form.bits == 8 else f"{form.bits}le"
    if form.kind == "rgb":
        names = ["rgba", "bgra", "gbrap"] if form.alpha else ["rgb24", "bgr24", "rgb0", "bgr0", "gbrp"]
        if deep:
            names = [f"gbrap{deep}", "rgba64le"] if form.alpha else [f"gbrp{deep}", "rgb48le"]
            names = names if form.bits == 16 else names[:1]
    elif form.subsampling == "gray":
        names = [f"gray{deep}"]
    elif form.alpha:
        names = [f"yuva{form.subsampling}p{deep}"]
    else:
        names = [f"yuv{form.subsampling}p{deep}"]
        digit = {"420": "0", "422": "2", "444": "4"}.get(form.subsampling)
        if digit and form.bits == 8:
            names += [{"0": "nv12", "2": "nv16", "4": "nv24"}[digit], f"yuvj{form.subsampling}p"]
        elif digit and form.bits in (10, 12, 16):
            names.append(f"p{digit}{form.bits}le")
    return [form.name] + [name for name in names if name != form.name]
