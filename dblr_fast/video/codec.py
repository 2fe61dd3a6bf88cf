"""Which encoder, which pixel format, which settings."""

from __future__ import annotations

import os
import struct

from ..errors import Refusal
from .pixels import Layout, same_samples

# Encoders with a constant rate factor, and the one taken when the caller names none.
_CRF = {"libx264": 16, "libx264rgb": 16, "libx265": 16, "libsvtav1": 20, "libaom-av1": 20, "libvpx-vp9": 20,
        "libvpx": 8}
# Encoders that are given a fixed quantiser instead; all others keep their own default.
_QUANTISER = {"mpeg4", "mpeg2video", "mjpeg", "libxvid"}
_LAMBDA = 118  # FFmpeg's scale of quantisers (FF_QP2LAMBDA)


def find_codec(name: str):
    """PyAV's Codec for encoding. Raises Refusal when there is no such video encoder."""
    import av

    try:
        codec = av.Codec(name, "w")
    except (ValueError, av.FFmpegError):
        codec = None
    if codec is None or codec.type != "video":
        raise Refusal(f"there is no video encoder {name!r} here; libx264, libx265 and ffv1 (lossless) are "
                      "usual")
    return codec


def choose_format(codec, form: Layout, full: bool) -> str:
    """The source's pixel format if the encoder takes it, else one that holds the same samples.

    Raises Refusal when there is none: the bits or the chroma would have to change.
    """
    taken = [f.name for f in codec.video_formats or ()]
    for name in same_samples(form):
        # A yuvj name means full range: it must not be put on limited samples.
        if name in taken and (full or not name.startswith("yuvj")):
            return name
    if not taken:
        return form.name
    advice = "ffv1 with an .mkv file takes nearly all" if codec.name != "ffv1" else "convert the video first"
    raise Refusal(f"encoder {codec.name} cannot keep the source's pixel format {form.name}; {advice}")


def configure(context, codec, crf: float | None) -> None:
    """Sets the quality. Raises Refusal for a crf that the encoder does not know."""
    if crf is not None and codec.name not in _CRF:
        raise Refusal(f"encoder {codec.name} has no constant rate factor; leave --crf out")
    if crf is not None and not 0 <= crf <= 63:
        raise Refusal(f"crf must lie between 0, the best, and 51 or 63, the worst by encoder; got {crf:g}")
    if crf is None:
        crf = _CRF.get(codec.name)
    if crf is not None:
        context.options["crf"] = f"{crf:g}"
    elif codec.name in _QUANTISER:
        context.qscale, context.global_quality = True, 2 * _LAMBDA
    if codec.name == "ffv1":
        context.options.update(level="3", slicecrc="1")
    if codec.name == "libsvtav1":
        os.environ.setdefault("SVT_LOG", "1")  # errors alone; it prints its settings otherwise
    if codec.name == "libx265":
        context.options["x265-params"] = "log-level=error"


def carry_hdr(context, codec, frame) -> list[str]:
    """Hands mastering display and light level (SMPTE ST 2086, CTA-861.3) of a frame to the encoder.

    Returns the names of the frame's side data that cannot be carried.
    """
    from av.sidedata.sidedata import Type

    lost, params = [], []
    for data in frame.side_data:
        if data.type == Type.MASTERING_DISPLAY_METADATA:
            params.append(("mastering-display" if codec.name == "libx264" else "master-display",
                           _mastering(bytes(data))))
        elif data.type == Type.CONTENT_LIGHT_LEVEL:
            levels = struct.unpack("=2I", bytes(data)[:8])
            params.append(("cll" if codec.name == "libx264" else "max-cll", f"{levels[0]},{levels[1]}"))
        elif data.type in (Type.SPHERICAL, Type.STEREO3D, Type.ICC_PROFILE, Type.DYNAMIC_HDR_PLUS,
                           Type.DOVI_METADATA, Type.DOVI_RPU_BUFFER, Type.AMBIENT_VIEWING_ENVIRONMENT):
            lost.append(data.type.name.lower().replace("_", " "))
    params = [(key, value) for key, value in params if value]
    if params and codec.name in ("libx264", "libx265"):
        key = codec.name[3:] + "-params"
        given = [context.options[key]] if context.options.get(key) else []
        context.options[key] = ":".join([*given, *(f"{name}={value}" for name, value in params)])
    elif params:
        lost.append("mastering display and light level")
    return sorted(set(lost))


def _mastering(data: bytes) -> str:
    """AVMasteringDisplayMetadata as x264 and x265 write it, or "" when it is not complete."""
    numbers = struct.unpack("=22i", data[:88])
    if not (numbers[20] and numbers[21]):
        return ""
    ratios = [n / d if d else 0.0 for n, d in zip(numbers[0:20:2], numbers[1:20:2])]
    (rx, ry, gx, gy, bx, by, wx, wy), (low, high) = [round(r * 50000) for r in ratios[:8]], ratios[8:]
    return (f"G({gx},{gy})B({bx},{by})R({rx},{ry})WP({wx},{wy})"
            f"L({round(high * 10000)},{round(low * 10000)})")
