"""From the frames of a video to pictures and back, where IN and OUT are of different kinds."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from .picture import ArrayPicture, VideoPicture
from .pixels import Layout, layout, repacked, views

# AVColorSpace -> libswscale's name of the matrix.
_MATRIX = {1: "ITU709", 5: "ITU601", 6: "SMPTE170M", 7: "SMPTE240M", 9: "BT2020", 10: "BT2020", 4: "FCC"}


def to_array(picture: VideoPicture) -> np.ndarray:
    """A frame as gray or B, G, R array, uint8 or (above 8 bits) uint16 over the whole scale, upright.

    YUV is converted with the frame's own matrix; when it names none, with BT.709 from 720 lines up, else
    BT.601, as players do. A rotation by quarter turns is carried out, because PNG has no tag for it.
    """
    frame, form = picture.frame, picture.form
    if form.kind == "rgb":
        parts = [_widened(part, form.bits) for part in views(frame, form)[:3]]
        array = np.stack(parts[::-1], -1)
    elif form.subsampling == "gray" and picture.full:
        array = _widened(views(frame, form)[0], form.bits).copy()
    else:
        deep = form.bits > 8
        matrix = _MATRIX.get(frame.colorspace, "ITU709" if frame.height >= 720 else "ITU601")
        rgb = frame.reformat(format="bgr48le" if deep else "bgr24", interpolation="BICUBIC",
                             src_colorspace=matrix, dst_colorspace=matrix,
                             src_color_range="JPEG" if picture.full else "MPEG", dst_color_range="JPEG")
        array = np.stack(views(rgb, layout(rgb.format.name))[::-1], -1)
    return np.ascontiguousarray(np.rot90(array, round(frame.rotation / 90) % 4))


def video_form(picture: ArrayPicture, codec) -> Layout:
    """The layout in which pictures like this one go to an encoder.

    Without loss (ffv1 and other encoders of R, G, B or of gray): the samples as they are. Otherwise YUV
    4:2:0, with 10 bits for 16-bit pictures where the encoder has them, and 4:4:4 for odd sizes, which 4:2:0
    does not take.
    """
    taken = [f.name for f in codec.video_formats or ()]
    deep = picture.bits > 8
    width, height = picture.size
    plain = "yuv444p" if width % 2 or height % 2 else "yuv420p"
    if picture.kind == "yuv":
        names = ["gray16le" if deep else "gray", "gray10le", "gray"]
    elif picture.array.shape[2] == 4:
        names = ["rgba64le", "gbrap16le"] if deep else ["bgra", "rgba"]
    else:
        names = ["gbrp16le", "rgb48le"] if deep else ["bgr24", "bgr0", "rgb24"]
    names += [plain + "10le", plain] if deep else [plain, plain + "10le"]
    if codec.name == "mjpeg":
        names = [plain.replace("yuv", "yuvj")]
    return layout(next((name for name in names if name in taken), plain))


def to_frame(picture: ArrayPicture, form: Layout, index: int, time_base: Fraction):
    """A picture as a frame of the layout; YUV by BT.709 in limited range, and tagged so."""
    import av

    parts = picture.components()
    if picture.kind == "yuv":
        native = layout("gray16le" if picture.bits == 16 else "gray")
    else:
        native = layout("gbrp16le" if picture.bits == 16 else "gbrp")
    if form.kind == "rgb" and picture.array.shape[2] == 4:
        parts = [*parts, picture.array[..., 3]]
        native = layout("gbrap16le" if picture.bits == 16 else "gbrap")
    frame = av.VideoFrame(*picture.size, native.name)
    for part, view in zip(parts, views(frame, native)):
        view[...] = part
    if form.kind == "rgb" or form.name == native.name:
        frame = repacked(frame, native, form.name)
        frame.color_range = 2 if picture.full else 1
    else:
        full = form.name.startswith("yuvj") or form.subsampling == "gray"
        frame = frame.reformat(format=form.name, src_color_range="JPEG" if picture.full else "MPEG",
                               dst_color_range="JPEG" if full else "MPEG", interpolation="BICUBIC",
                               dst_colorspace="ITU709")
        frame.color_range, frame.colorspace = 2 if full else 1, 1
    frame.pts, frame.time_base, frame.duration = index, time_base, 1
    return frame


def _widened(samples, bits):
    """9 to 15 bits stretched to 16, so that white stays white."""
    if bits in (8, 16):
        return samples
    wide = samples.astype(np.uint32)
    return (wide << (16 - bits) | wide >> (2 * bits - 16)).astype(np.uint16)
