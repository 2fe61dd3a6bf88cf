"""A pool of blurred windows on disk, made once and cropped at random during training.

A shard is a .npy file of uint8 (n, frames + 1, h, w): the blurred window, then its sharp centre frame.
"""

import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from ..data.blur import BlurSettings, synthesize_window, window_rng
from ..data.clips import PICTURES, load_luma_clip

# Reduced pictures are sharper and cleaner than the camera's own pixels; full-size ones are what users have.
SCALES = {1080: ((0.4, 0.5, 0.67, 1.0), (0.2, 0.4, 0.2, 0.2)),
          720: ((0.4, 0.5, 0.7, 1.0), (0.15, 0.4, 0.25, 0.2)),
          0: ((0.5, 0.75, 1.0), (0.35, 0.35, 0.3))}


def list_clips(root):
    """Clips below a folder: video files, and folders that hold pictures, in the order of their names."""
    root = Path(root)
    clips = [p for p in sorted(root.iterdir())
             if p.suffix.lower() in (".mp4", ".mkv", ".mov", ".npz")
             or p.is_dir() and any(q.suffix.lower() in PICTURES for q in p.iterdir())]
    if not clips:
        raise ValueError(f"expected video files or folders of pictures in {root}, found none")
    return clips


def sharpness(luma):
    """Variance of the Laplacian of a (H, W) picture in luma units: the usual measure without a reference."""
    return float(cv2.Laplacian(np.asarray(luma, np.float32), cv2.CV_32F).var())


def _choose_frame(clip, rng):
    """An index away from the ends: the sharpest of three neighbours, for footage has blur of its own."""
    middle = int(rng.integers(3, max(len(clip) - 3, 4)))
    near = np.clip(middle + rng.integers(-6, 7, 3), 3, max(len(clip) - 4, 3))
    near = np.minimum(near, len(clip) - 1)
    return int(max(near, key=lambda i: sharpness(clip[i][::2, ::2] / 255.0)))


def draw_window(clip, rng, settings):
    """One window from a uint8 clip (K, H, W): frame, scale and place drawn at random, textured places more often."""
    index = _choose_frame(clip, rng)
    key = next(k for k in SCALES if clip.shape[1] >= k)
    scale = float(rng.choice(SCALES[key][0], p=SCALES[key][1]))
    around = 3 if rng.random() < settings.flow_share else 0
    frames = clip[max(index - around, 0):index + around + 1]
    if len(frames) != 2 * around + 1:
        frames = clip[index:index + 1]
    h, w = settings.size
    height, width = max(round(clip.shape[1] * scale), h), max(round(clip.shape[2] * scale), w)
    frames = np.stack([cv2.resize(f, (width, height), interpolation=cv2.INTER_AREA) for f in frames])
    frames = frames.astype(np.float32) / np.float32(255)
    centre = frames[len(frames) // 2]
    places = [(int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))) for _ in range(3)]
    if rng.random() < 0.75:
        places.sort(key=lambda p: -sharpness(centre[p[0]:p[0] + h, p[1]:p[1] + w]))
    settings = replace(settings, flow_share=1.0 if len(frames) > 1 else 0.0)
    return synthesize_window(frames, rng, settings, origin=places[0])


def make_shard(clip, seed, count, settings):
    """`count` windows of a uint8 clip -> uint8 (count, frames + 1, h, w). seed: a tuple of ints."""
    shard = np.empty((count, settings.frames + 1, *settings.size), np.uint8)
    for i in range(count):
        blurred, sharp = draw_window(clip, window_rng(*seed, i), settings)
        shard[i, :-1] = np.rint(blurred * 255)
        shard[i, -1] = np.rint(sharp * 255)
    return shard


def build_pool(source, folder, rounds=1, first_round=0, count=40, settings=BlurSettings(), log=print):
    """Write one shard a round and clip of `source` to `folder`; shards appear complete or not at all."""
    cv2.setNumThreads(1)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for turn in range(first_round, first_round + rounds):
        for number, path in enumerate(list_clips(source)):
            clip = load_luma_clip(path, dtype=np.uint8)
            shard = make_shard(clip, (turn, number), count, settings)
            part = folder / f".{turn:03d}_{number:02d}.part"
            with open(part, "wb") as file:
                np.save(file, shard)
            os.replace(part, folder / f"{turn:03d}_{number:02d}.npy")
            log(f"pool: round {turn}, {path.name}: {count} windows")


class Pool:
    """The windows of a pool folder in memory; `refresh` picks up shards that were added meanwhile."""

    def __init__(self, folder):
        self.folder, self.shards, self.names = Path(folder), [], set()
        self.refresh()
        if not self.shards:
            raise ValueError(f"expected .npy shards in {folder}, found none: run the `pool` command first")

    def refresh(self):
        for path in sorted(self.folder.glob("*.npy")):
            if path.name not in self.names:
                self.names.add(path.name)
                self.shards.append(np.load(path))
        self.ends = np.cumsum([len(s) for s in self.shards])

    def __len__(self):
        return int(self.ends[-1])

    def batch(self, count, size, rng):
        """`count` random crops, flipped and turned at random -> (blurred (n, frames, s, s), sharp (n, 1, s, s)),
        float32 in [0, 1]."""
        out = []
        for index in rng.integers(0, len(self), count):
            shard = int(np.searchsorted(self.ends, index, "right"))
            window = self.shards[shard][index - self.ends[shard]]
            y, x = (int(rng.integers(0, n - size + 1)) for n in window.shape[1:])
            crop = window[:, y:y + size, x:x + size]
            crop = np.rot90(crop, int(rng.integers(4)), (1, 2))
            out.append(crop[:, :, ::-1] if rng.random() < 0.5 else crop)
        out = np.stack(out).astype(np.float32) / np.float32(255)
        return out[:, :-1], out[:, -1:]
