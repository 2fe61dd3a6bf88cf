"""Where restored pictures go: a folder, or a video made from a video or from pictures.

Each sink has write(picture), copy(packet of another stream), close() to finish, abandon() to let go, and a
list of warnings.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from .pictures import FolderWriter


class ToFolder:
    """PNG files in a folder; pictures keep their names, frames of a video are numbered."""

    def __init__(self, folder: Path, from_video: bool):
        self._writer, self._from_video = FolderWriter(folder), from_video
        self.warnings = ["a folder of pictures holds no sound and no time stamps"] if from_video else []

    def write(self, picture) -> None:
        if self._from_video:
            from .convert import to_array

            self._writer.write(to_array(picture))
        else:
            self._writer.write(picture.array, picture.name)

    def copy(self, packet) -> None:
        """Nothing else has a place in a folder."""

    def close(self) -> None:
        """Each picture is complete when it is written."""

    abandon = close


class _ToVideo:
    def __init__(self, writer):
        self._writer, self.warnings = writer, writer.warnings
        self.copy, self.close, self.abandon = writer.copy, writer.close, writer.abandon


class VideoToVideo(_ToVideo):
    """Frames of a VideoReader, with all that belongs to them."""

    def __init__(self, path: Path, name: str, reader, codec: str, crf: float | None):
        from .writer import VideoWriter

        first, stream = reader.first, reader.stream
        super().__init__(VideoWriter(
            path, codec, crf, first.form, first.size, first.full, stream.time_base,
            stream.average_rate or stream.guessed_rate, first.frame, reader, name))

    def write(self, picture) -> None:
        self._writer.write(picture.as_format(self._writer.format))


class PicturesToVideo(_ToVideo):
    """Pictures of a FolderReader at `fps` frames a second."""

    def __init__(self, path: Path, name: str, reader, codec: str, crf: float | None, fps: float):
        from .codec import find_codec
        from .convert import to_frame, video_form
        from .writer import VideoWriter

        rate = Fraction(fps).limit_denominator(1001)
        self._base, self._count, self._to_frame = 1 / rate, 0, to_frame
        self._form = video_form(reader.first, find_codec(codec))
        tags = to_frame(reader.first, self._form, 0, self._base)
        full = self._form.name.startswith("yuvj")
        super().__init__(VideoWriter(
            path, codec, crf, self._form, reader.first.size, full, self._base, rate, tags, None, name))

    def write(self, picture) -> None:
        self._writer.write(self._to_frame(picture, self._form, self._count, self._base))
        self._count += 1
