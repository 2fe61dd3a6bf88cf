"""Video files out: one encoded stream, all other streams copied packet by packet."""

from __future__ import annotations

import math
import os
import re
from fractions import Fraction
from pathlib import Path

import av

from ..errors import Refusal, RunError
from .codec import carry_hdr, choose_format, configure, find_codec
from .log import reason, speaking
from .pixels import Layout
from .streams import Copies

# Encoders that write the pixels' aspect ratio into their own stream, where every reader looks.
_ASPECT_INSIDE = ("libx264", "libx264rgb", "libx265", "mpeg4", "mpeg2video")
# What a transport stream can carry: the muxer takes anything, but writes what no reader understands.
_IN_TS = ("h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video")
# What a file says about its own coding; it is not true of the new one.
_OWN_TAGS = re.compile(r"(?i)(encoder|duration|major_brand|minor_version|compatible_brands|vendor_id|"
                       r"(bps|number_of_frames|number_of_bytes|_statistics_.*)(-\w+)?)")


class VideoWriter:
    """Encodes frames into a file.

    path: the file to write; its suffix names the container. name: what messages call it.
    codec, crf: the encoder and its quality.
    form, size, full: layout, (width, height) and range of the frames that will come.
    time_base, rate: unit of the frames' time stamps, and frames a second (may be a rough guess).
    tags: a frame whose colour tags are taken over.
    source: a VideoReader whose aspect ratio, rotation, tags, chapters and other streams are taken over.

    format: the pixel format that `write` wants. warnings: one sentence on each thing that cannot be kept.
    Raises Refusal when encoder, container and frames do not go together.
    """

    def __init__(self, path: Path, codec: str, crf: float | None, form: Layout, size: tuple[int, int],
                 full: bool, time_base: Fraction, rate: Fraction | None, tags, source=None, name: str = ""):
        self.path, self.name = path, name or path.name
        self._kind = path.suffix[1:].upper()
        self._source, self._first, self._closed = source, None, False
        self._encoder = find_codec(codec)
        self.format = choose_format(self._encoder, form, full)
        try:
            self.container = av.open(os.fspath(path), "w", container_options=self._options(time_base))
        except (av.FFmpegError, ValueError):
            raise Refusal(f"{path.suffix or 'no suffix'!r} names no video container; call the output .mp4 or "
                          ".mkv, for instance") from None
        self._copies = Copies(self.container, self.name, source)
        self.warnings = self._copies.warnings
        try:
            for stream in source.container.streams if source else [None]:
                if stream is None or stream.index == source.stream.index:
                    self._add_video(crf, size, time_base, rate, tags)
                else:
                    self._copies.add(stream)
            self._copy_facts()
            self._start(size)
        except BaseException:
            self.abandon()
            raise

    def write(self, frame) -> None:
        """Encodes one av.VideoFrame of this writer's format; its time stamp is kept."""
        if self._first is None:
            self._first = frame.pts * frame.time_base
        frame.pict_type = av.video.frame.PictureType.NONE  # the encoder places its own key frames
        self._guard(lambda: self.container.mux(self.stream.encode(frame)))

    def copy(self, packet) -> None:
        """Passes on a packet of another stream, byte for byte, with its time stamps."""
        source = packet.stream
        if self._copies.adopt(packet):
            self._guard(lambda: self.container.mux(packet), f"stream {source.index}")

    def close(self) -> None:
        """Flushes the encoder, finishes the file and looks whether it can be read."""
        def finish():
            self.container.mux(self.stream.encode(None))
            self._closed = True
            self.container.close()
        self._guard(finish)
        self._read_back()

    def abandon(self) -> None:
        """Lets go of an unfinished file, whatever state it is in."""
        if not self._closed:
            self._closed = True
            try:
                self.container.close()
            except (OSError, ValueError, RuntimeError, av.FFmpegError):
                pass  # the file is about to be removed

    def _guard(self, action, what="the video stream"):
        try:
            action()
        except av.FFmpegError as error:
            if isinstance(error, OSError) and error.errno:
                raise RunError(f"{self.name} could not be written: {os.strerror(error.errno)}") from error
            raise RunError(f"{self.name}: {what} could not be written ({reason(error)})") from error

    def _read_back(self):
        """Opens the finished file: what cannot be read, or has moved in time, must not go unsaid."""
        try:
            with av.open(os.fspath(self.path)) as file:
                frame = next(file.decode(video=0))
                shift, unit = frame.pts * frame.time_base - self._first, frame.time_base
        except (av.FFmpegError, LookupError, TypeError, StopIteration):
            raise RunError(f"{self.name} cannot be read back: {self._kind} files do not work with "
                           f"{self._encoder.name} video; take .mkv or .mp4, or another codec") from None
        if abs(shift) > unit:
            self.warnings.append(f"{self._kind} files cannot keep when a video starts: this one starts "
                                 f"{float(shift) * 1000:+.0f} ms later than the source")

    def _options(self, time_base):
        """Options of the container under which it keeps time stamps as they are."""
        suffix = self.path.suffix.lower()
        others = self._source.others if self._source else []
        if suffix in (".mp4", ".mov", ".m4v", ".3gp"):
            # Edit lists count in the movie's time scale, milliseconds unless told otherwise: in the streams'
            # own units a first frame that does not start at zero keeps its exact time.
            scale = math.lcm(time_base.denominator, *(s.time_base.denominator for s in others if s.time_base))
            return {"movie_timescale": str(scale if scale < 2**31 else time_base.denominator)}
        start = (self._source.container.start_time or 0) if self._source else 0
        if suffix in (".mkv", ".mka", ".webm") and start > -30e6:
            # Sound often starts a little before zero (the coder's priming), which the muxer would make up for
            # by starting everything later; a block's time may be negative, down to -32 s.
            return {"avoid_negative_ts": "disabled"}
        return {}

    def _add_video(self, crf, size, time_base, rate, tags):
        encoder = self._encoder
        try:
            if self.container.format.name == "mpegts" and encoder.canonical_name not in _IN_TS:
                raise ValueError
            self.stream = self.container.add_stream(encoder.name, rate=rate or Fraction(30))
        except ValueError:
            raise Refusal(f"a file like {self.name} cannot hold {encoder.name} video; call the output .mkv "
                          "or take another codec") from None
        context = self.stream.codec_context
        context.width, context.height = size
        context.pix_fmt, context.time_base = self.format, time_base
        context.thread_type = "AUTO"  # PyAV's own choice would cut x264's frames into slices
        context.flags |= int(av.codec.context.Flags.frame_duration)
        configure(context, encoder, crf)
        if encoder.canonical_name == "hevc" and self.container.format.name in ("mp4", "mov", "ipod"):
            context.codec_tag = "hvc1"  # the tag that Apple's players want
        context.color_range, context.colorspace = tags.color_range, tags.colorspace
        context.color_primaries, context.color_trc = tags.color_primaries, tags.color_trc
        if self._source is not None:
            self._tag(context, tags)

    def _tag(self, context, frame):
        """What the source's stream or its first frame says about the picture, beside its colours."""
        aspect = self._source.stream.sample_aspect_ratio
        if aspect:
            context.sample_aspect_ratio = aspect
            matroska = self.container.format.name.startswith(("matroska", "webm"))
            if matroska and aspect != 1 and self._encoder.name not in _ASPECT_INSIDE:
                self.warnings.append(f"the pixels' aspect ratio {aspect} cannot be put into {self._kind} "
                                     f"files of {self._encoder.name}; libx264, or an .mp4 file, keeps it")
        if self._source.chroma_site:
            context.options["chroma_sample_location"] = self._source.chroma_site
        for data in frame.side_data:
            if data.type.name == "DISPLAYMATRIX":
                self.stream.set_display_matrix(memoryview(bytes(data)).cast("i").tolist())
        lost = carry_hdr(context, self._encoder, frame)
        if lost:
            self.warnings.append(f"{', '.join(lost)} of the source cannot be carried over")

    def _copy_facts(self):
        source = self._source
        if source is not None:
            self.container.metadata.update(_kept(source.container.metadata))
            self.stream.metadata.update(_kept(source.stream.metadata))
            self.stream.disposition = source.stream.disposition
            self.container.set_chapters([c for c in source.container.chapters() if c["time_base"]])

    def _start(self, size):
        encoder = self._encoder.name
        try:
            with speaking("ERROR"):
                self.stream.codec_context.open()
        except av.FFmpegError as error:
            raise Refusal(f"encoder {encoder} does not take this video of {size[0]}x{size[1]} {self.format} "
                          f"({reason(error)}); --codec ffv1 with an .mkv file takes nearly all") from None
        try:
            with speaking("ERROR"):
                self.container.start_encoding()
        except av.FFmpegError as error:
            if isinstance(error, OSError) and error.errno:
                raise RunError(f"{self.name} could not be written: {os.strerror(error.errno)}") from error
            raise Refusal(f"a file like {self.name} cannot hold this {encoder} video ({reason(error)}); call "
                          "the output .mkv or take another codec") from None
        wanted, unit = self.stream.codec_context.time_base, self.stream.time_base
        if self.container.format.name == "avi":
            self.warnings.append("AVI files hold no time stamps: their frames come at a constant rate")
        elif (wanted / unit).denominator != 1:
            self.warnings.append(f"{self._kind} files count time in units of {float(unit) * 1000:.3g} ms: "
                                 "time stamps that lie between are rounded")


def _kept(metadata) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if not _OWN_TAGS.fullmatch(key)}
