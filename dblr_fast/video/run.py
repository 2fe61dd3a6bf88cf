"""deblur_video(): a video or a folder of pictures in, the same restored out."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..colour import check_range
from ..errors import Refusal, RunError
from ..replace import replacing, replacing_folder
from ..restore import Restorer
from ..window import windows
from .pictures import FolderReader
from .sinks import PicturesToVideo, ToFolder, VideoToVideo


@dataclass(frozen=True)
class Result:
    """What deblur_video did.

    frames: how many were written. width, height: their size. seconds: for the whole run.
    complete: False when the source turned out to be damaged or cut off; what could be read of it was written.
    warnings: one sentence each, on all that could not be kept. backend, precision: what the network ran on.
    """

    frames: int
    width: int
    height: int
    seconds: float
    complete: bool
    warnings: tuple[str, ...]
    backend: str
    precision: str


def deblur_video(source, target, *, model="default", backend: str | None = None, precision: str = "auto",
                 tile: str | int = "auto", device=None, codec: str = "libx264", crf: float | None = None,
                 range: str = "auto", fps: float | None = None, overwrite: bool = False,
                 progress: Callable[[int, int | None], None] | None = None) -> Result:
    """Restores a video file, or a folder of pictures, frame by frame; memory does not grow with its length.

    source: a video file, or a folder of pictures (8 or 16 bits, gray or colour) in natural order of names.
    target: a video file (its suffix names the container), or without a suffix a folder of PNG pictures.
    model: a name out of `models()`, a path, a DBLRNet, or an Engine.
    backend, precision, tile, device: as in Engine; without a device a GPU is taken when there is one.
    codec, crf: video encoder ("libx264"; "ffv1" in an .mkv file loses nothing) and its constant rate factor
        (None: 16 for libx264 and libx265).
    range: of the luma samples, "limited", "full", or "auto" for what the source says (unspecified means
        limited for a video, full for pictures).
    fps: frames a second of a video that is made from pictures (None: 30).
    overwrite: replace a target that exists. Of a folder only files of the same names are replaced.
    progress: called as progress(frames done, frames in all or None) after every frame.

    What is kept: the decoder's own Y plane goes through the network and back at its own depth, U and V are
    handed to the encoder as they came; time stamps, colour tags, aspect ratio, rotation, chapters, tags and
    all other streams (audio packets byte for byte) are copied. No matrix is applied to a video's luma:
    weights are trained on BT.601 luma, and that of BT.709 or BT.2020 is taken as it is. R, G, B sources and
    pictures are restored in the luma of the weights' own matrix, the difference added to R, G and B. The
    pixel format of the source is kept, or the run is refused. For the ends of the clip the edge frame is
    repeated.

    The target appears only when it is complete; until then, and after any failure, it is as it was.

    Raises Refusal (a ValueError) when the request cannot be met, ValueError or RuntimeError from the engine,
    RunError (a RuntimeError) when writing fails, for instance on a full disk.
    """
    return _run(source, target, model=model, backend=backend, precision=precision, tile=tile, device=device,
                codec=codec, crf=crf, range=range, fps=fps, overwrite=overwrite, progress=progress)


def _run(source, target, *, model, backend, precision, tile, device, codec, crf, range, fps, overwrite,
         progress, limit: int | None = None) -> Result:
    """limit: frames of the video to restore; later ones are dropped, other streams are still copied whole."""
    started = time.perf_counter()
    source, target = Path(source), Path(target)
    check_range(range, ("auto", "limited", "full"))
    from_folder, to_folder = _check_paths(source, target, overwrite)
    if fps is not None and not (from_folder and not to_folder):
        raise Refusal("fps is for making a video from pictures; a video keeps its own time stamps")
    if fps is not None and not 0 < fps <= 100000:
        raise Refusal(f"fps must be a positive number; got {fps}")
    if not (from_folder and to_folder):
        _need_av()
    reader = FolderReader(source, range) if from_folder else _video_reader(source, range)
    try:
        restorer = Restorer(model, backend, precision, tile, device)
        width, height = reader.first.size
        count, warnings = 0, []
        try:
            with (replacing_folder if to_folder else replacing)(target) as temporary:
                sink = _sink(temporary, target, reader, from_folder, to_folder, codec, crf, fps)
                try:
                    for picture in _restored(reader.pictures(sink.copy, limit), restorer):
                        sink.write(picture)
                        count += 1
                        if progress is not None:
                            progress(count, reader.total)
                    sink.close()
                finally:
                    sink.abandon()
                warnings = [*sink.warnings, *_damage(reader, source)]
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise RunError(f"{target} could not be written: {os.strerror(error.errno)}") from error
            raise
    finally:
        reader.close()
    return Result(count, width, height, time.perf_counter() - started, not reader.damage, tuple(warnings),
                  restorer.engine.backend, restorer.engine.precision)


def _restored(pictures: Iterable, restorer: Restorer):
    """Each picture with its luma restored, in order."""
    read = ((picture, picture.luma(restorer.device, restorer.weights)) for picture in pictures)
    for window in windows(read, restorer.radius):
        picture, luma = window[restorer.radius]
        picture.put(restorer([item[1] for item in window]), luma)
        yield picture


def _check_paths(source: Path, target: Path, overwrite: bool) -> tuple[bool, bool]:
    """(source is a folder, target is one). Raises Refusal when they cannot be used."""
    if not source.exists():
        raise Refusal(f"there is no file or folder {source}")
    if not (source.is_dir() or source.is_file()):
        raise Refusal(f"{source} is neither a file nor a folder")
    if not os.access(source, os.R_OK):
        raise Refusal(f"{source} may not be read")
    to_folder = target.is_dir() or not target.suffix
    if target.exists() and os.path.samefile(source, target):
        raise Refusal(f"output {target} is the input itself; choose another name")
    if target.is_dir() != to_folder and target.exists():
        raise Refusal(f"output {target} has no suffix and so would be a folder, but is a file; add .mp4, for "
                      "instance")
    if target.exists() and not overwrite and not (to_folder and not any(target.iterdir())):
        raise Refusal(f"output {target} exists; --overwrite replaces it")
    if not target.parent.is_dir():
        raise Refusal(f"the folder {target.parent} for the output does not exist; make it first")
    return source.is_dir(), to_folder


def _need_av():
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise Refusal(f"video files need PyAV, which cannot be imported ({error}); pip install av") from None


def _video_reader(source, range):
    from .reader import VideoReader

    return VideoReader(source, range)


def _sink(temporary, target, reader, from_folder, to_folder, codec, crf, fps):
    if to_folder:
        return ToFolder(temporary, not from_folder)
    if from_folder:
        return PicturesToVideo(temporary, target.name, reader, codec, crf, 30 if fps is None else fps)
    return VideoToVideo(temporary, target.name, reader, codec, crf)


def _damage(reader, source) -> list[str]:
    if not reader.damage:
        return []
    what = "; ".join(dict.fromkeys(reader.damage))
    return [f"{source} is damaged or cut off ({what}); what could be decoded of it was restored"]
