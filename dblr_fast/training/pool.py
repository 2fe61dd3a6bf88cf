"""A pool of blurred windows on disk, made once and cropped at random during training.

A shard is a .npy file of uint8 (n, frames + 1, h, w): the blurred window, then its sharp centre frame.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from ..data.blur import BlurSettings, synthesize_window, window_rng
from ..data.clips import PICTURES, load_luma_clip
from .pack import load_packed

# Mostly the blur of a hand, which a short training can undo, with some that is hopeless: mean 9 pixels.
TRAINING = BlurSettings(size=(128, 128), length_shape=(1.1, 3.6), sharp_share=0.16)

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


def load_source(path):
    """A clip or packed clip -> (uint8 frames (K, H, W), run): so many frames in a row are consecutive."""
    if Path(path).suffix == ".npz":
        return load_packed(path)
    clip = load_luma_clip(path, dtype=np.uint8)
    return clip, len(clip)


def _choose_frame(clip, run, around, rng):
    """An index with `around` consecutive neighbours on each side: the sharpest of three, for footage has blur
    of its own."""
    if run <= 2 * around:
        return int(rng.integers(len(clip)))
    near = rng.integers(0, len(clip) // run) * run + rng.integers(around, run - around)
    first = near - near % run
    near = np.clip(near + rng.integers(-6, 7, 3), first + around, min(first + run, len(clip)) - 1 - around)
    return int(max(near, key=lambda i: sharpness(clip[i][::2, ::2] / 255.0)))


def draw_window(clip, run, rng, settings):
    """One window from a uint8 clip (K, H, W): frame, scale and place drawn at random, places with texture
    more often.

    run: so many frames in a row are consecutive (all of a video's)."""
    around = min(3, (run - 1) // 2) if rng.random() < settings.flow_share else 0
    index = _choose_frame(clip, run, around, rng)
    key = next(k for k in SCALES if clip.shape[1] >= k)
    scale = float(rng.choice(SCALES[key][0], p=SCALES[key][1]))
    frames = clip[index - around:index + around + 1]
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


def make_shard(clip, run, seed, count, settings):
    """`count` windows of a uint8 clip -> uint8 (count, frames + 1, h, w). seed: a tuple of ints."""
    shard = np.empty((count, settings.frames + 1, *settings.size), np.uint8)
    for i in range(count):
        blurred, sharp = draw_window(clip, run, window_rng(*seed, i), settings)
        shard[i, :-1] = np.rint(blurred * 255)
        shard[i, -1] = np.rint(sharp * 255)
    return shard


def _build_shard(path, turn, number, folder, count, settings):
    cv2.setNumThreads(1)
    clip, run = load_source(path)
    shard = make_shard(clip, run, (turn, number), count, settings)
    part = folder / f".{turn:03d}_{number:02d}.part"
    with open(part, "wb") as file:
        np.save(file, shard)
    os.replace(part, folder / f"{turn:03d}_{number:02d}.npy")
    return f"pool: round {turn}, {path.name}: {count} windows"


def build_pool(source, folder, rounds=1, first_round=0, count=40, workers=1, settings=TRAINING,
               log=print):
    """Write one shard a round and clip of `source` to `folder`; shards appear complete or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(path, turn, number, folder, count, settings) for turn in range(first_round, first_round + rounds)
            for number, path in enumerate(list_clips(source))]
    if workers == 1:
        for job in jobs:
            log(_build_shard(*job))
        return
    with ProcessPoolExecutor(workers) as executor:
        for line in executor.map(_build_shard, *zip(*jobs)):
            log(line)


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
        """`count` random crops, flipped, turned and run backwards at random -> blurred (n, frames, s, s) and
        sharp (n, 1, s, s), float32 in [0, 1]."""
        out = []
        for index in rng.integers(0, len(self), count):
            shard = int(np.searchsorted(self.ends, index, "right"))
            window = self.shards[shard][index - self.ends[shard]]
            y, x = (int(rng.integers(0, n - size + 1)) for n in window.shape[1:])
            crop = window[:, y:y + size, x:x + size]
            crop = np.rot90(crop, int(rng.integers(4)), (1, 2))
            if rng.random() < 0.5:
                crop = crop[:, :, ::-1]
            out.append(np.concatenate([crop[-2::-1], crop[-1:]]) if rng.random() < 0.5 else crop)
        out = np.stack(out).astype(np.float32) / np.float32(255)
        return out[:, :-1], out[:, -1:]
