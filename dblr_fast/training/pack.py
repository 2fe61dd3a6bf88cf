"""Sharp clips in a few dozen MiB: short runs of consecutive luma frames as JPEG, one .npz a clip.

For a training machine that has neither the footage nor a video decoder: reading a pack needs OpenCV alone.
"""

import os
from pathlib import Path

import cv2
import numpy as np

from ..data.clips import load_luma_clip

RUN = 5  # consecutive frames of a run, enough for optical flow on both sides of its middle


def pack_clip(path, target, runs, height=540, quality=90):
    """Write `runs` evenly spaced runs of RUN frames of a clip, reduced to at most `height` rows; returns the
    size in bytes."""
    clip = load_luma_clip(path, dtype=np.uint8)
    runs = min(runs, len(clip) // RUN)
    codes = []
    for start in np.linspace(0, len(clip) - RUN, runs).astype(int):
        for frame in clip[start:start + RUN]:
            if frame.shape[0] > height:
                width = round(frame.shape[1] * height / frame.shape[0])
                frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
            codes.append(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].ravel())
    part = Path(f"{target}.part")
    with open(part, "wb") as file:
        np.savez(file, codes=np.concatenate(codes), sizes=np.array([len(c) for c in codes]), run=RUN)
    os.replace(part, target)
    return Path(target).stat().st_size


def load_packed(path):
    """(uint8 frames (K, H, W), run): frames n * run to (n + 1) * run - 1 are consecutive."""
    with np.load(path) as pack:
        ends = np.cumsum(pack["sizes"])
        codes = np.split(pack["codes"], ends[:-1])
        return np.stack([cv2.imdecode(code, cv2.IMREAD_GRAYSCALE) for code in codes]), int(pack["run"])


def build_pack(source, folder, runs=7, log=print):
    """Pack every clip of a folder; returns the size of all in bytes."""
    from .pool import list_clips

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for path in list_clips(source):
        total += pack_clip(path, folder / f"{path.stem}.npz", runs)
        log(f"pack: {path.name}, {total / 2 ** 20:.1f} MiB so far")
    return total
