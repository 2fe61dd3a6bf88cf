"""Video files out: one encoded stream, all other streams copied packet by packet."""

from __future__ import annotations

import io
import math
import os
import re
from fractions import Fraction
from pathlib import Path

from ..errors import Refusal, RunError
from .codec import carry_hdr, choose_format, configure, find_codec
from .log import reason, speaking
from .pixels import Layout

# Encoders that write the pixels' aspect ratio into their own stream, where every reader looks.
_ASPECT_INSIDE = ("libx264", "libx264rgb", "libx265", "mpeg4", "mpeg2video")
_DISPLAY_MATRIX = "DISPLAYMATRIX"
# What a file says about its own coding; it is not true of the new one.
_OWN_TAGS = re.compile(r"(?i)(encoder|duration|major_brand|minor_version|compatible_brands|vendor_id|"
                       r"(bps|number_of_frames|number_of_bytes|_statistics_.*)(-\w+)?)")


class VideoWriter:
    """Encodes frames into a file.

    path: the file to write; its suffix names the container. codec, crf: the encoder and its quality.
    form, size, full: layout, (width, height) and range of the frames that will come.
    time_base, rate: unit of the frames' time stamps, and frames a second (may be a rough guess).

    Colour tags, aspect ratio and rotation are copied from `tags` (a frame) and `source` (a VideoReader), when
    given, and all other streams of the source that the container can hold are made ready; `warnings` names
    what it cannot hold.
    """

    def __init__(self, path: Path, codec: str, crf: float | None, form: Layout, size: tuple[int, int], full: bool,
                 time_base: Fraction, rate: Fraction | None, source=None, tags=None, name: str = ""):
        import av

        self._av, self.path, self.name, self.warnings = av, path, name or path.name, []
        self._streams, self._source, self._shifted = {}, source, False
        encoder = find_codec(codec)
        self.format = choose_format(encoder, form, full)
        try:
            self.container = av.open(os.fspath(path), "w", container_options=self._container_options(time_base))
        except (av.FFmpegError, ValueError):
            raise Refusal(f"{path.suffix or 'no suffix'!r} names no video container; call the output .mp4 or .mkv, "
                          "for instance") from None
        self._closed = False
        self._matroska = self.container.format.name.startswith(("matroska", "webm"))
        if self._matroska and (time_base * 1000).denominator != 1:
            self.warnings.append("Matroska counts milliseconds: time stamps are rounded to the nearest")
        try:
            self._add_streams(encoder, crf, size, time_base, rate, full, tags)
            self._copy_facts()
            self._start(encoder, size)
        except BaseException:
            self.abandon()
            raise

    def write(self, frame) -> None:
        """Encodes one av.VideoFrame of this writer's format; its time stamp is kept."""
        frame.pict_type = self._av.video.frame.PictureType.NONE  # the encoder places its own key frames
        self._guard(lambda: self.container.mux(self.stream.encode(frame)))

    def copy(self, packet) -> None:
        """Passes on a packet of another stream, byte for byte, with its time stamps."""
        stream = self._streams.get(packet.stream_index)
        if stream is None:
            return
        source = packet.stream
        if self._matroska and packet.pts is not None and packet.pts < 0 and not self._shifted:
            self._shifted = True
            self.warnings.append(f"Matroska holds no times before zero: all streams start "
                                 f"{-float(packet.pts * packet.time_base) * 1000:.0f} ms later, together")
        packet.stream = stream
        self._guard(lambda: self.container.mux(packet), f"stream {source.index} ({describe(source)})")

    def close(self) -> None:
        """Flushes the encoder and finishes the file."""
        def finish():
            self.container.mux(self.stream.encode(None))
            self._closed = True
            self.container.close()
        self._guard(finish)

    def abandon(self) -> None:
        """Lets go of an unfinished file, whatever state it is in."""
        if not self._closed:
            self._closed = True
            try:
                self.container.close()
            except (OSError, ValueError, RuntimeError, self._av.FFmpegError):
                pass  # the file is about to be removed

    def _guard(self, action, what="the video stream"):
        try:
            action()
        except self._av.FFmpegError as error:
            if isinstance(error, OSError) and error.errno:
                raise RunError(f"{self.name} could not be written: {os.strerror(error.errno)}") from error
            raise RunError(f"{self.name}: {what} could not be written ({reason(error)})") from error

    def _container_options(self, time_base):
        # MP4's edit lists count in the movie's time scale, milliseconds unless told otherwise: in the streams' own
        # units a first frame that does not start at zero keeps its exact time.
        bases = [time_base] + [s.time_base for s in (self._source.others if self._source else ()) if s.time_base]
        scale = math.lcm(*(base.denominator for base in bases))
        if scale >= 2**31:
            scale = time_base.denominator
        movie = self.path.suffix.lower() in (".mp4", ".mov", ".m4v", ".3gp")
        return {"movie_timescale": str(scale)} if movie else {}

    def _add_streams(self, encoder, crf, size, time_base, rate, full, tags):
        source = self._source
        listed = list(source.container.streams) if source else [None]
        for stream in listed:
            if source is None or stream.index == source.stream.index:
                self._add_video(encoder, crf, size, time_base, rate, full, tags)
            else:
                self._add_copy(stream)

    def _add_video(self, encoder, crf, size, time_base, rate, full, tags):
        try:
            self.stream = self.container.add_stream(encoder.name, rate=rate or Fraction(30))
        except ValueError:
            raise Refusal(f"a {self.container.format.name} file cannot hold {encoder.name} video; "
                          "call the output .mkv or take another codec") from None
        context = self.stream.codec_context
        context.width, context.height = size
        context.pix_fmt, context.time_base = self.format, time_base
        context.thread_type = "AUTO"  # PyAV's own choice would cut x264's frames into slices
        context.flags |= int(self._av.codec.context.Flags.frame_duration)
        configure(context, encoder, crf)
        if encoder.name in ("libx265", "hevc_nvenc") and "global_header" in self._flags():
            context.codec_tag = "hvc1"  # the tag that Apple's players want
        if tags is not None:
            self._tag(context, encoder, full, tags)

    def _flags(self):
        flags = self._av.format.Flags(self.container.format.flags)
        movie = self.container.format.name in ("mp4", "mov", "ipod", "3gp")
        return {flag.name for flag in flags} if movie else set()

    def _tag(self, context, encoder, full, frame):
        context.color_range, context.colorspace = frame.color_range, frame.colorspace
        context.color_primaries, context.color_trc = frame.color_primaries, frame.color_trc
        if full and not context.color_range and frame.format.name.startswith("yuvj"):
            context.color_range = 2
        source = self._source
        if source is None:
            return
        if source.stream.sample_aspect_ratio:
            context.sample_aspect_ratio = source.stream.sample_aspect_ratio
            if self._matroska and source.stream.sample_aspect_ratio != 1 and encoder.name not in _ASPECT_INSIDE:
                self.warnings.append(f"the pixels' aspect ratio {source.stream.sample_aspect_ratio} cannot be put "
                                     f"into a Matroska file of {encoder.name}; libx264, or a .mov file, keeps it")
        if source.chroma_site:
            context.options["chroma_sample_location"] = source.chroma_site
        for data in frame.side_data:
            if data.type.name == _DISPLAY_MATRIX:
                self.stream.set_display_matrix(memoryview(bytes(data)).cast("i").tolist())
        lost = carry_hdr(context, encoder, frame)
        if lost:
            self.warnings.append(f"{', '.join(lost)} of the source cannot be carried over")

    def _add_copy(self, stream):
        if self._is_remade(stream):
            return
        if not (self._matroska if stream.type == "attachment" else self._holds(stream)):
            self.warnings.append(f"stream {stream.index} ({describe(stream)}) is left out, because a file like "
                                 f"{self.name} cannot hold it")
            return
        copy = self._template(self.container, stream)
        self._streams[stream.index] = copy
        if stream.type == "video":
            if not stream.disposition & self._av.stream.Disposition.attached_pic:
                self.warnings.append(f"stream {stream.index} ({describe(stream)}) is copied as it is, because only "
                                     "the first video stream is deblurred")

    def _is_remade(self, stream) -> bool:
        """Time code and chapter tracks of QuickTime: the muxer writes them anew from tags and chapters."""
        if stream.type != "data" and stream.type != "subtitle":
            return False
        video = self._source.stream.metadata
        timecode = stream.metadata.get("timecode")
        chapters = stream.discard == self._av.stream.Discard.all and self._source.container.chapters()
        return bool(chapters) or (timecode is not None and timecode == video.get("timecode"))

    def _holds(self, stream) -> bool:
        """Whether the container takes the stream: found by writing a header to memory."""
        try:
            with self._av.open(io.BytesIO(), "w", format=self.container.format.name) as trial:
                self._template(trial, stream)
                trial.start_encoding()
        except (self._av.FFmpegError, ValueError):
            return False
        return True

    @staticmethod
    def _template(container, stream):
        copy = container.add_stream_from_template(stream, opaque=True)
        copy.metadata.update(stream.metadata)
        copy.disposition = stream.disposition
        return copy

    def _copy_facts(self):
        source = self._source
        if source is None:
            return
        self.container.metadata.update(_kept(source.container.metadata))
        self.stream.metadata.update(_kept(source.stream.metadata))
        self.stream.disposition = source.stream.disposition
        self.container.set_chapters([chapter for chapter in source.container.chapters() if chapter["time_base"]])

    def _start(self, encoder, size):
        try:
            with speaking("ERROR"):
                self.stream.codec_context.open()
        except self._av.FFmpegError as error:
            raise Refusal(f"encoder {encoder.name} does not take this video of {size[0]}x{size[1]} {self.format} "
                          f"({reason(error)}); --codec ffv1 with an .mkv file takes nearly all") from None
        self._guard(self.container.start_encoding, "its header")


def describe(stream) -> str:
    """Type, codec and name of a stream, in a few words."""
    name = getattr(stream, "name", None)
    title = stream.metadata.get("title") or stream.metadata.get("handler_name") or stream.metadata.get("filename")
    title = "".join(c for c in title if c.isprintable()).strip() if title else ""
    return ", ".join([" ".join(filter(None, [stream.type, name]))] + ([title] if title else []))


def _kept(metadata) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if not _OWN_TAGS.fullmatch(key)}
