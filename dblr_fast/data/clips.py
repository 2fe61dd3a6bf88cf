"""Sharp clips as luma: video files and folders of pictures -> float32 frames, 0 black, 1 nominal white."""

from pathlib import Path

import numpy as np

PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


def _picture_luma(path):
    import cv2

    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise ValueError(f"expected a picture that OpenCV can read, got {path}: remove it or convert it")
    # BT.601 luma of full-range pictures, in float32 so that nothing is rounded.
    return cv2.cvtColor(bgr.astype(np.float32) * np.float32(1 / 255), cv2.COLOR_BGR2GRAY)


def _video_luma(path, start, stop, step):
    import av

    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError(f"expected a file with a video stream, got {path}, which has none")
        stream = container.streams.video[0]
        stream.thread_count = 1
        for index, frame in enumerate(container.decode(stream)):
            if stop is not None and index >= stop:
                return
            if index < start or (index - start) % step:
                continue
            name = frame.format.name
            if not name.startswith(("yuv", "nv12", "gray")) or frame.format.components[0].bits != 8:
                raise ValueError(f"expected 8-bit video with a luma plane, got {name} in {path}: "
                                 "convert it first")
            plane = frame.planes[0]
            luma = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:frame.height, :frame.width]
            full = name.startswith(("yuvj", "gray")) or frame.color_range == 2
            luma = luma.astype(np.float32)
            yield luma / np.float32(255) if full else (luma - np.float32(16)) / np.float32(219)


def iter_luma(path, start=0, stop=None, step=1):
    """Yield the frames of a clip one by one as float32 luma (H, W); 0 is black, 1 nominal white.

    path: a video file (8 bits; the decoder's own Y plane, limited range (Y-16)/219 unless the stream says
        full, then Y/255; not clamped, so limited range can leave [0, 1] a little), or a folder of pictures
        (BT.601 luma of RGB), taken in the order of their names.
    start, stop, step: which frames, as in `range`; the end of the clip ends the sequence.
    Raises FileNotFoundError or ValueError in one sentence where a clip cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        names = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES)
        if not names:
            raise ValueError(f"expected pictures ({', '.join(sorted(PICTURES))}), got none in {path}: "
                             "name a folder that holds some")
        for name in names[slice(start, stop, step)]:
            yield _picture_luma(name)
    elif path.is_file():
        yield from _video_luma(path, start, stop, step)
    else:
        raise FileNotFoundError(f"expected a video file or a folder of pictures, got {path}, "
                                "which does not exist: check the path")


def load_luma_clip(path, start=0, stop=None, step=1, dtype=np.float32):
    """Read a clip into one array (K, H, W): see `iter_luma`.

    dtype: np.float32 (0 black, 1 nominal white), or np.uint8, a quarter of the memory: rounded to 0..255 and
    clipped there.
    """
    def convert(frame):
        if dtype == np.uint8:
            return np.clip(np.rint(frame * 255), 0, 255).astype(np.uint8)
        return frame.astype(dtype, copy=False)

    frames = [convert(frame) for frame in iter_luma(path, start, stop, step)]
    if not frames:
        raise ValueError(f"expected at least one frame in {path} from frame {start} on, got none")
    shapes = {frame.shape for frame in frames}
    if len(shapes) > 1:
        raise ValueError(f"expected frames of one size in {path}, got {sorted(shapes)}: "
                         "sort them into folders")
    return np.stack(frames)
