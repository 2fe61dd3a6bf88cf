"""The streams beside the video: sound, subtitles, data, pictures on the cover; copied packet by packet."""

from __future__ import annotations

import io

import av


# Codecs of cover pictures -> the name that files and media types of theirs end with.
_COVERS = {"png": "png", "mjpeg": "jpeg", "bmp": "bmp", "gif": "gif", "webp": "webp"}


class Copies:
    """All streams of a source but its video, made ready in an output container.

    warnings: one sentence for each stream that the container cannot hold.
    """

    def __init__(self, container, name: str, source):
        self._container, self._name, self._source = container, name, source
        self._streams: dict[int, av.stream.Stream] = {}
        self.warnings: list[str] = []

    def add(self, stream) -> None:
        """Makes a place for a stream of the source, or says why there is none."""
        if self._is_remade(stream) or self._is_attached(stream):
            return
        if not self._holds(stream):
            self.warnings.append(f"stream {stream.index} ({describe(stream)}) is left out, because a file "
                                 f"like {self._name} cannot hold it")
            return
        self._streams[stream.index] = _template(self._container, stream)
        if stream.type == "video" and not stream.disposition & av.stream.Disposition.attached_pic:
            self.warnings.append(f"stream {stream.index} ({describe(stream)}) is copied as it is, because "
                                 "only the first video stream is deblurred")

    def adopt(self, packet) -> bool:
        """Hands a packet over to the output's stream; False when that was left out."""
        stream = self._streams.get(packet.stream.index)
        if stream is not None:
            packet.stream = stream
        return stream is not None

    def _is_remade(self, stream) -> bool:
        """Time code and chapter tracks of QuickTime: the muxer writes them anew from tags and chapters."""
        if stream.type not in ("data", "subtitle"):
            return False
        timecode = stream.metadata.get("timecode")
        if timecode is not None and timecode == self._source.stream.metadata.get("timecode"):
            return True
        return stream.discard == av.stream.Discard.all and bool(self._source.container.chapters())

    def _is_attached(self, stream) -> bool:
        """Matroska keeps a cover picture as an attachment, whose bytes must be there before the header."""
        kind = _COVERS.get(getattr(stream, "name", None))
        cover = stream.type == "video" and stream.disposition & av.stream.Disposition.attached_pic
        if not (cover and kind and self._container.format.name == "matroska"):
            return False
        for packet in self._source.early:
            if packet.stream.index == stream.index:
                tags = {"filename": f"cover.{kind}", "mimetype": f"image/{kind}", **stream.metadata}
                self._container.add_attachment(tags["filename"], tags["mimetype"], bytes(packet))
                return True
        return False

    def _holds(self, stream) -> bool:
        """Whether the container takes the stream: found by writing a header to memory."""
        if stream.type == "attachment":  # fonts; Matroska alone has them, and no header of them alone
            return self._container.format.name.startswith(("matroska", "webm"))
        try:
            with av.open(io.BytesIO(), "w", format=self._container.format.name) as trial:
                _template(trial, stream)
                trial.start_encoding()
        except (av.FFmpegError, ValueError):
            return False
        return True


def describe(stream) -> str:
    """Type, codec and name of a stream, in a few words."""
    tags = stream.metadata
    title = tags.get("title") or tags.get("handler_name") or tags.get("filename") or ""
    title = "".join(c for c in title if c.isprintable()).strip()
    kind = " ".join(filter(None, [stream.type, getattr(stream, "name", None)]))
    return f"{kind}, {title}" if title and title != getattr(stream, "name", None) else kind


def _template(container, stream):
    copy = container.add_stream_from_template(stream, opaque=True)
    copy.metadata.update(stream.metadata)
    copy.disposition = stream.disposition
    return copy
