"""Pictures and videos as bytes: 8-bit luma (BT.601 of R, G, B, or the video's own Y), or R, G, B.

A file that cannot be decoded whole is refused: training on half a picture goes unnoticed for days.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..colour import WEIGHTS
from ..errors import Refusal

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv")


def opencv():
    """The cv2 module. Raises Refusal when it cannot be imported."""
    try:
        import cv2
    except ImportError as error:
        raise Refusal(f"training data need OpenCV, which cannot be imported ({error}); "
                      "pip install opencv-python-headless") from None
    return cv2


@contextmanager
def one_thread():
    """Context in which OpenCV computes in the calling thread alone: optical flow depends on how it is shared out."""
    cv2 = opencv()
    before = cv2.getNumThreads()
    if before == 1:
        yield
        return
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def read_bgr(path: str) -> np.ndarray:
    """A picture as (H, W, 3) uint8 in OpenCV's order of channels. Raises Refusal unless it can be read whole."""
    cv2 = opencv()
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise Refusal(f"{path} cannot be read ({error.strerror})") from None
    if not data.size:
        raise Refusal(f"{path} is empty; take it out, or fetch it again")
    try:
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error:
        picture = None
    if picture is None:
        raise Refusal(f"{path} is not a picture that can be read; take it out, or fetch it again")
    if _cut_off(data.tobytes()):
        raise Refusal(f"{path} is cut off before its end; fetch it again")
    return picture


def _cut_off(data: bytes) -> bool:
    """Whether a JPEG or PNG ends too early; decoders fill the rest with grey and only warn."""
    if data.startswith(b"\xff\xd8"):
        # No end marker can be within coded samples; one within an embedded preview comes before them.
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    return data.startswith(b"\x89PNG") and b"IEND" not in data[-4096:]


def luma_of_bgr(picture: np.ndarray) -> np.ndarray:
    """(..., H, W, 3) uint8 B, G, R -> (..., H, W) uint8, BT.601 rounded to the nearest."""
    cv2 = opencv()
    flat = picture.reshape(-1, picture.shape[-2], 3)
    return cv2.cvtColor(flat, cv2.COLOR_BGR2GRAY).reshape(picture.shape[:-1])


def read_luma(path: str) -> np.ndarray:
    """A picture as (H, W) uint8 luma. Raises Refusal unless it can be read whole."""
    return luma_of_bgr(read_bgr(path))


def video_luma(path: str) -> Iterator[np.ndarray]:
    """The frames of a video as (H, W) uint8 luma, its Y plane scaled to full range.

    Raises Refusal for a file that is no video, is damaged, or changes its size on the way.
    """
    import torch

    cpu = torch.device("cpu")
    for picture in _video(path):
        luma = picture.luma(cpu, WEIGHTS["bt601"])
        yield luma.mul_(255).round_().clamp_(0, 255).to(torch.uint8).numpy()


def video_rgb(path: str) -> Iterator[np.ndarray]:
    """The frames of a video as (H, W, 3) uint8 R, G, B. Raises Refusal as `video_luma`."""
    for picture in _video(path):
        yield picture.frame.to_ndarray(format="rgb24")


def _video(path: str):
    try:
        from ..video.reader import VideoReader
    except ImportError as error:
        raise Refusal(f"videos need PyAV, which cannot be imported ({error}); pip install av") from None
    reader = VideoReader(Path(path))
    try:
        yield from reader.pictures(lambda packet: None)
        if reader.damage:
            raise Refusal(f"{path} is damaged ({reader.damage[0]}); take it out, or fetch it again")
    finally:
        reader.close()
