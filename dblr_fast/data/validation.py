"""The validation set: windows that are the same whenever they are asked for, in luma and with the centre's colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..colour import WEIGHTS, luma_of
from ..errors import Refusal
from .blur import synthesize_window, window_rng
from .config import BlurConfig, DataConfig, layout_of_each
from .layouts import Footage, find
from .reading import one_thread, read_bgr, video_rgb
from .store import Store
from .training import Opened, Progress, check_frames, find_all, opened
from .windows import Reduced, is_cut, neighbours, reduced_size, settings_of, window_numbers

_SEED = 2024


def validation_set(config: DataConfig, frames: int, progress: Progress | None = None) -> ValidationSet:
    """The validation windows of a configuration: the same at every call, and of no clip that is trained on.

    Of pairs, the middles of pictures spread evenly over all clips; of sharp footage, the same, with blur made as in
    training: lengths spread evenly over their distribution, none of them sharp windows.
    frames: length of the windows, odd. progress(done, total): called after each window.
    Raises Refusal as `training_set` does, and where there is nothing to validate on.
    """
    config.check()
    check_frames(frames)
    clips = _clips(config)
    plan = _spread(clips, config.validation_windows)
    lengths = iter(_lengths(config.blur, sum(clip.blurred is None for clip, _ in plan)))
    windows = []
    with one_thread():
        for clip in clips:
            here = [(n, number) for n, (which, number) in enumerate(plan) if which is clip]
            make = _pairs if clip.blurred else _made
            for number, pair in make(clip, here, config, frames, lengths):
                windows.append((f"{clip.name.replace('/', '_')} frame {number}", *pair))
                if progress is not None:
                    progress(len(windows), len(plan))
    return ValidationSet(windows)


class ValidationSet(Sequence):
    """See `validation_set`. Items are dict(name str, blurred (T, H, W) luma, blurred_rgb and sharp_rgb (3, H, W) of the
    centre frame): float32 in [0, 1]; the centre of `blurred` is the luma (BT.601) of blurred_rgb. They are held in
    memory as bytes of R, G, B, 3 (T + 1) a pixel.

    windows: (name, blurred (T, H, W, 3), sharp (H, W, 3)), uint8.
    """

    def __init__(self, windows: list[tuple[str, np.ndarray, np.ndarray]]):
        self._windows = windows

    def __len__(self):
        return len(self._windows)

    def __getitem__(self, index: int) -> dict:
        name, *pair = self._windows[index]
        blurred, sharp = (torch.from_numpy(part).float() / 255 for part in pair)
        centre = blurred[len(blurred) // 2]
        return {"name": name, "blurred": luma_of(blurred, WEIGHTS["bt601"]),
                "blurred_rgb": centre.movedim(-1, 0).contiguous(), "sharp_rgb": sharp.movedim(-1, 0).contiguous()}


def _clips(config: DataConfig) -> list[Opened]:
    """The clips to validate on: those of validation_paths, or else the test splits or clips held out."""
    if config.validation_paths:
        layouts = layout_of_each(config.validation_layouts, config.validation_paths)
        found = [find(path, layout, config.gopro_blur, "data.validation_paths")
                 for path, layout in zip(config.validation_paths, layouts)]
        parts = [f.test or f.train for f in found]
    else:
        parts = [f.held_out(config.held_out).test for f in find_all(config)]
    if not any(parts):
        raise Refusal("there is nothing to validate on, as no test split was found and data.held_out keeps no clip; "
                      "give data.validation_paths, or more clips, or switch validation off")
    store = Store(config.cache, config.cache_limit)
    return [clip for part in opened(parts, store, None, keep=False) for clip in part]


def _spread(clips: list[Opened], windows: int) -> list[tuple[Opened, int]]:
    """(clip, number of the centre frame) of each window, spread evenly over clips and within each."""
    chosen = [(2 * n + 1) * len(clips) // (2 * windows) for n in range(windows)]
    plan = []
    for n, which in enumerate(chosen):
        first, end = clips[which].span
        share = (chosen[:n].count(which) + 0.5) / chosen.count(which)
        plan.append((clips[which], min(first + int(share * (end - first)), end - 1)))
    return plan


def _lengths(blur: BlurConfig, count: int) -> list[float]:
    """Lengths at the middles of `count` equal parts of their distribution, in an order that mixes short and long."""
    rng = window_rng(_SEED)
    drawn = blur.length[0] + (blur.length[1] - blur.length[0]) * rng.beta(*blur.length_shape, 10_001)
    middles = np.quantile(drawn, (np.arange(count) + 0.5) / max(count, 1))
    return [float(length) for length in rng.permutation(middles)]


@dataclass
class _Colours:
    """Some frames of a clip in R, G, B, and the shape (K, H, W, 3) of all: what windows are cut from."""

    frames: dict[int, np.ndarray]
    shape: tuple[int, int, int, int]

    def cut(self, numbers, rows, columns):
        return np.stack([self.frames[number][rows, columns] for number in numbers])


def _colours(footage: Footage, shape, needs: list[list[int]]) -> Iterator[_Colours]:
    """The frames that each window needs, one window after the other; a video is decoded once."""
    if footage.pictures:
        for need in needs:
            yield _Colours({n: _sized(footage, n, read_bgr(footage.pictures[n])[..., ::-1], shape) for n in set(need)},
                           (*shape, 3))
        return
    held: dict[int, np.ndarray] = {}
    frames = enumerate(video_rgb(footage.path))
    for turn, need in enumerate(needs):
        while not held.keys() >= set(need):
            number, frame = next(frames)
            held[number] = frame
        yield _Colours(held, (*shape, 3))
        least = min((min(later) for later in needs[turn + 1:]), default=0)
        held = {number: frame for number, frame in held.items() if number >= least}


def _sized(footage, number, picture, shape):
    if picture.shape[:2] != tuple(shape[1:]):
        (height, width), (h, w) = shape[1:], picture.shape[:2]
        raise Refusal(f"{footage.pictures[number]} is {w}x{h} and the first picture of its folder {width}x{height}; "
                      "all pictures of a clip must have one size")
    return picture


def _middle(outer, inner) -> tuple[int, int]:
    return tuple((a - b) // 2 for a, b in zip(outer, inner))


def _pairs(clip: Opened, here, config: DataConfig, frames: int, _):
    """Yields (number, (blurred (T, h, w, 3), sharp (h, w, 3))), uint8, of each window of a clip that has both."""
    shape = clip.sharp.shape
    size = tuple(min(config.validation_size or n, n) for n in shape[1:])
    rows, columns = (slice(n, n + m) for n, m in zip(_middle(shape[1:], size), size))
    needs = [window_numbers(number, frames, clip.span) for _, number in here]
    both = zip(_colours(clip.footage.blurred, shape, needs),
               _colours(clip.footage.sharp, shape, [[number] for _, number in here]))
    for (_, number), need, (blurred, sharp) in zip(here, needs, both):
        yield number, (blurred.cut(need, rows, columns), sharp.cut([number], rows, columns)[0])


def _made(clip: Opened, here, config: DataConfig, frames: int, lengths):
    """As `_pairs`, for sharp footage."""
    blur, (first, end), shape = config.blur, clip.span, clip.sharp.shape
    least = min(config.validation_size or 1, *shape[1:])
    drawn, needs = [], []
    for n, number in here:
        rng = window_rng(_SEED, n)
        size = reduced_size(shape[1:], least, blur, rng)
        moving, speed = rng.random() < blur.flow_share, rng.uniform(*blur.scene_speed)
        around = min(neighbours(frames, speed), number - first, end - 1 - number) if moving else 0
        drawn.append((rng, size, speed))
        needs.append(list(range(number - around, number + around + 1)))
    for (_, number), (rng, size, speed), need, colours in zip(here, drawn, needs,
                                                             _colours(clip.footage.sharp, shape, needs)):
        if len(need) > 1 and is_cut(colours, need):
            need = [number]
        cut = tuple(min(config.validation_size or n, n) for n in size)
        length = next(lengths)
        settings = replace(settings_of(blur, frames, cut), length=(length, length), sharp_share=0.0,
                           flow_share=float(len(need) > 1), scene_speed=(speed, speed))
        pair = synthesize_window(Reduced(colours, need, size), rng, settings, origin=_middle(size, cut))
        yield number, tuple(np.rint(part * 255).astype(np.uint8) for part in pair)
