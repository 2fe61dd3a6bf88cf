"""The training set: endless numbered samples, each a pure function of configuration, seed and number."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ..errors import Refusal
from .blur import window_rng
from .config import DataConfig, layout_of_each
from .layouts import Clip, Found, find
from .reading import one_thread
from .store import Store
from .windows import blurred_from_sharp, oriented, pair_from_clip

Progress = Callable[[int, int], None]


def training_set(config: DataConfig, frames: int, seed: int, progress: Progress | None = None) -> TrainingSet:
    """The training set of a configuration; `set[i]` gives a sample for any i >= 0.

    frames: length of the windows, odd. seed: whole number from 0 on. progress(done, total): called after each clip
    that has been decoded or found in the cache.
    Raises Refusal, one sentence, for settings out of range, a path that is missing, empty or laid out otherwise than
    it should be, a file that cannot be read whole, pictures of several sizes in a clip, crops larger than the
    pictures, and clips shorter than a window.
    """
    return TrainingSet(config, frames, seed, progress)


class TrainingSet(torch.utils.data.Dataset):
    """See `training_set`. Samples are dict(blurred (T, crop, crop), sharp (1, crop, crop)): float32 luma in [0, 1].

    It can be pickled, and asked from any process: what has been decoded lies in files, which each maps itself.
    """

    def __init__(self, config: DataConfig, frames: int, seed: int, progress: Progress | None = None):
        config.check()
        check_frames(frames)
        self.config, self.frames, self.seed = config, frames, int(seed)
        found = [f.held_out(0 if config.validation_paths else config.held_out) for f in find_all(config)]
        for source in found:
            if not source.train:
                raise Refusal(f"{source.path} holds nothing to train on, only the test split of {source.layout}; give "
                              "it in data.validation_paths")
        weights = np.array(config.weights or [1.0] * len(found))
        self.weights = weights / weights.sum()
        self.store = Store(config.cache, config.cache_limit)
        self.clips = opened([source.train for source in found], self.store, progress)
        for clip in (clip for clips in self.clips for clip in clips):
            clip.require(frames, config.crop, config.blur.flow_share > 0)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        """Sample `number`. Raises Refusal where a picture that is decoded only now cannot be read."""
        if number < 0:
            raise IndexError(f"samples are numbered from 0 on; got {number}")
        config, rng = self.config, window_rng(self.seed, int(number))
        clips = self.clips[int(rng.choice(len(self.clips), p=self.weights))]
        clip = clips[int(rng.integers(len(clips)))]
        with one_thread():
            if clip.blurred is None:
                pair = blurred_from_sharp(clip.sharp, clip.span, rng, config.blur, self.frames, config.crop)
            else:
                pair = pair_from_clip(clip.blurred, clip.sharp, clip.span, rng, self.frames, config.crop)
            blurred, sharp = oriented(rng, *pair, config.flips, config.turns)
        return {"blurred": torch.from_numpy(blurred), "sharp": torch.from_numpy(sharp)[None]}

    def __getstate__(self):
        return {**self.__dict__, "store": None}  # its folder is this process's to remove


class Opened:
    """A clip whose luma can be read: `sharp` and `blurred` (None where it has to be made), frames `span`."""

    def __init__(self, clip: Clip, store: Store, keep: bool = True):
        self.footage, self.name, self.pads, self.path = clip, clip.name, clip.pads, clip.sharp.path
        self.sharp = store.open(clip.sharp, keep)
        self.blurred = store.open(clip.blurred, keep) if clip.blurred else None
        count = self.sharp.shape[0]
        self.span = round(clip.first * count), round(clip.last * count)
        if self.blurred is not None and self.blurred.shape != self.sharp.shape:
            (height, width), (h, w) = self.sharp.shape[1:], self.blurred.shape[1:]
            raise Refusal(f"the pictures of {clip.blurred.path} are {w}x{h} and those of {clip.sharp.path} "
                          f"{width}x{height}; pairs must have one size")

    def require(self, frames: int, crop: int, moves: bool) -> None:
        """Raises Refusal where crops or windows do not fit."""
        _, height, width = self.sharp.shape
        if min(height, width) < crop:
            raise Refusal(f"the frames of {self.path} are {width}x{height}, smaller than data.crop {crop}; give a "
                          "smaller crop, or take that clip out")
        count = self.span[1] - self.span[0]
        if self.blurred is None and not moves:
            frames = 1
        if count < (1 if self.pads else frames):
            way_out = ", or data.blur.flow_share 0" if self.blurred is None else ""
            raise Refusal(f"{self.path} has {count} frames to train on, fewer than the {frames} of a window; take it "
                          f"out, or ask for shorter windows{way_out}")


def check_frames(frames: int) -> None:
    """Raises Refusal unless windows can have this length."""
    if frames < 1 or frames % 2 == 0:
        raise Refusal(f"a window must have an odd number of frames; got {frames}")


def find_all(config: DataConfig) -> list[Found]:
    """The clips of each of data.paths."""
    return [find(path, layout, config.gopro_blur)
            for path, layout in zip(config.paths, layout_of_each(config.layouts, config.paths))]


def opened(parts: list[list[Clip]], store: Store, progress: Progress | None, keep: bool = True) -> list[list[Opened]]:
    """The clips of each path, opened; videos first, as only pictures can be read without the cache."""
    order = sorted(((i, j) for i, part in enumerate(parts) for j in range(len(part))),
                   key=lambda ij: bool(parts[ij[0]][ij[1]].sharp.pictures))
    out: list[list] = [[None] * len(part) for part in parts]
    for done, (i, j) in enumerate(order, 1):
        out[i][j] = Opened(parts[i][j], store, keep)
        if progress is not None:
            progress(done, len(order))
    return out
