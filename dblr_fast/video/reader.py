"""Video files in: decoded frames one after the other, and the packets of all other streams as they come."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import av

from ..errors import Refusal
from .log import reason, speaking
from .picture import VideoPicture

# Demuxers that show a text or a single picture as if it were a video.
_NOT_VIDEO = re.compile(r"tty|image2.*|.*_pipe|lrc|srt|ass|webvtt|data|bin|ffmetadata")
_INTERLACED = (2, 3, 4, 5)  # AVFieldOrder: top or bottom field first, coded or displayed
_SITES = ("left", "center", "topleft", "top", "bottomleft", "bottom")


class VideoReader:
    """Opens a video and decodes its first frame.

    range: "auto" (what the file says; unspecified means limited), "limited" or "full".
    Raises Refusal when there is nothing in it that can be restored.

    stream: the video stream. others: all other streams, in the file's order. first: the first picture.
    early: packets of other streams that came before it.
    total: number of frames as the file announces it, or None. damage: what was found wrong on the way; a file
    with damage has been read as far as possible.
    """

    def __init__(self, path: Path, range: str = "auto"):
        self.path, self.range, self.damage = path, range, []
        try:
            self.container = av.open(os.path.abspath(path), metadata_errors="replace")
        except av.FFmpegError as error:
            raise Refusal(f"{path} cannot be read as a video ({reason(error)}); it is no video file, or it "
                          "was cut off before its index was written") from None
        self.stream = None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self):
        name = self.container.format.name
        videos = [s for s in self.container.streams.video
                  if not s.disposition & av.stream.Disposition.attached_pic]
        if _NOT_VIDEO.fullmatch(name):
            raise Refusal(f"{self.path} is not a video (it reads as {name}); give a video file, or a folder "
                          "of pictures")
        if not videos:
            raise Refusal(f"{self.path} holds no video stream")
        self.stream = videos[0]
        if self.stream.codec_context is None:
            raise Refusal(f"{self.path}: there is no decoder here for its video stream; convert it first")
        self.others = [s for s in self.container.streams if s.index != self.stream.index]
        self.stream.thread_type = "AUTO"
        self.chroma_site = self._find_chroma_site()
        self._packets = self._ends = 0
        self._undecoded, self._enough = 0, False
        self.early: list = []
        self._frames = self._decoded(self.early.append)
        self._first = next(self._frames, None)
        if self._first is None:
            why = f" ({self.damage[0]})" if self.damage else ""
            raise Refusal(f"{self.path}: not one frame of its video stream could be decoded{why}")
        # PyAV tells the field order since version 18; before, the frame's own flag has to do.
        fields = getattr(self.stream.codec_context, "field_order", 0)
        if fields in _INTERLACED or self._first.frame.interlaced_frame:
            raise Refusal(f"{self.path} is interlaced, which the network is not made for; deinterlace it "
                          f"first, for instance with: ffmpeg -i {self.path.name} -vf bwdif progressive.mkv")

    @property
    def first(self) -> VideoPicture:
        return self._first

    @property
    def total(self) -> int | None:
        if self.stream.frames:
            return self.stream.frames
        rate, duration = self.stream.guessed_rate, self.container.duration
        return max(1, round(float(rate) * duration / av.time_base)) if rate and duration else None

    @property
    def complete(self) -> bool:
        return not self.damage

    def pictures(self, on_packet: Callable, limit: int | None = None) -> Iterator[VideoPicture]:
        """All frames in order of presentation; on_packet gets each packet of the other streams on the way.

        limit: frames after which the video is not decoded any more; the other streams go on to their ends.
        """
        for packet in self.early:
            on_packet(packet)
        self.early.clear()
        self._on_packet = on_packet
        first, self._first = self._first, None
        shape = first.size, first.frame.format.name
        for count, picture in enumerate(chain([first], self._frames), 1):
            if self._enough:
                continue
            self._enough = count == limit
            if (picture.size, picture.frame.format.name) != shape:
                now = _shape(picture.size, picture.frame.format.name)
                raise Refusal(f"{self.path} changes from {_shape(*shape)} to {now} at "
                              f"{picture.frame.time:.2f} s; cut it there and deblur the parts")
            yield picture

    def close(self):
        """Stops the decoder too. Its threads write messages, for which they want Python's lock; who frees a decoder
        holds that lock until they have ended, and would wait for ever."""
        decoder = self.stream.codec_context if self.stream else None
        if decoder is not None:
            decoder.flush_buffers()
        self.container.close()

    def _decoded(self, on_packet):
        self._on_packet = on_packet
        clock = _Clock(self.stream)
        for packet in self._demuxed():
            if packet.stream.index != self.stream.index:
                if packet.size or packet.dts is not None:  # not one that stands for the end of the stream
                    self._on_packet(packet)
                continue
            if self._enough:
                continue
            if not packet.size and packet.dts is not None:
                continue  # an empty sample; the decoder would take it for the end of the stream
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                self._note_undecoded(error)
                continue
            for frame in frames:
                frame.pts, frame.time_base = clock.stamp(frame), self.stream.time_base
                yield VideoPicture(frame, is_full(frame, self.range))
        self._check_length()

    def _demuxed(self):
        """All packets; a demuxer that fails ends the stream, and the decoder is flushed."""
        source = self.container.demux()
        while True:
            try:
                packet = next(source)
            except StopIteration:
                return
            except av.FFmpegError as error:
                self.damage.append(f"reading stopped early: {reason(error)}")
                yield from self._flushes()
                return
            if packet.stream.index == self.stream.index and (packet.size or packet.dts is not None):
                self._packets += 1
            if packet.is_corrupt:
                self.damage.append("a packet is cut off")
            if packet.pts is not None and packet.time_base:
                self._ends = max(self._ends, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            yield packet

    def _flushes(self):
        packet = av.Packet()
        packet.stream, packet.time_base = self.stream, self.stream.time_base
        yield packet

    def _note_undecoded(self, error):
        if not self._undecoded:
            self.damage.append(f"some of its video could not be decoded: {reason(error)}")
        self._undecoded += 1

    def _check_length(self):
        """A file that was cut off ends without an error in most formats: compare with what it announces."""
        name = self.container.format.name
        if name.startswith("mov"):
            announced = len(self.stream.index_entries)
            if self._packets < announced:
                self.damage.append(f"only {self._packets} of {announced} video packets are there")
        elif name.startswith("matroska") and self.container.duration:
            announced = self.container.duration / av.time_base
            if self._ends < announced - 0.5:
                self.damage.append(f"it announces {announced:.1f} s and ends after {self._ends:.1f} s")

    def _find_chroma_site(self) -> str:
        """Where chroma samples lie: FFmpeg tells only in its description of the file, in verbose mode."""
        with speaking("VERBOSE"):
            text = self.container.dumps_format()
        line = re.search(rf"Stream #0:{self.stream.index}\b.*?: Video: .*", text)
        found = re.findall(r"\(([^()]*)\)", line[0]) if line else []
        sites = [word for group in found for word in group.split(", ") if word in _SITES]
        return sites[0] if sites else ""


def is_full(frame, range: str) -> bool:
    """Whether a frame's samples have full range; unspecified means limited, but not in R, G, B and yuvj."""
    if range != "auto":
        return range == "full"
    return frame.format.name.startswith("yuvj") or frame.format.is_rgb or frame.color_range == 2


class _Clock:
    """Gives every frame a time stamp greater than the one before, its own wherever it has a usable one."""

    def __init__(self, stream):
        rate = stream.guessed_rate or stream.average_rate
        self._step = max(1, round(1 / (rate * stream.time_base))) if rate else 1
        self._last = None

    def stamp(self, frame):
        stamp = frame.pts if frame.pts is not None else frame.dts
        if stamp is None:
            stamp = 0 if self._last is None else self._last + self._step
        elif self._last is not None and stamp <= self._last:
            stamp = self._last + 1
        self._last = stamp
        return stamp


def _shape(size, name):
    return f"{size[0]}x{size[1]} {name}"
