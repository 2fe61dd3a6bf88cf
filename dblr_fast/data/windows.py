"""Windows out of clips: where and when to cut, at what size, and the blur for sharp footage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .blur import BlurSettings, synthesize_window
from .config import BlurConfig
from .reading import opencv

_CUT = 0.12  # mean difference of neighbouring frames' luma beyond which they are taken for two scenes


class Reduced:
    """Frames around one of a clip, seen at a smaller size: what `synthesize_window` reads them from.

    source: with a `shape` (K, H, W[, 3]) and `cut`, as those of the store. numbers: the frames, in order.
    size: (height, width) to see them at. Only the part that is asked for is read and reduced, by area.
    """

    def __init__(self, source, numbers, size):
        self.source, self.numbers = source, list(numbers)
        self.shape = (len(self.numbers), *size, *source.shape[3:])
        self.steps = source.shape[1] / size[0], source.shape[2] / size[1]

    def cut(self, numbers, rows, columns):
        numbers = [self.numbers[number] for number in numbers]
        if self.steps == (1, 1):
            return self.source.cut(numbers, rows, columns)
        size = columns.stop - columns.start, rows.stop - rows.start
        y, x = (slice(int(part.start * step), min(int(np.ceil(part.stop * step)), limit))
                for part, step, limit in zip((rows, columns), self.steps, self.source.shape[1:3]))
        cv2 = opencv()
        return [cv2.resize(part, size, interpolation=cv2.INTER_AREA) for part in self.source.cut(numbers, y, x)]


def settings_of(config: BlurConfig, frames: int, size: tuple[int, int]) -> BlurSettings:
    """The settings of `synthesize_window` that a configuration stands for."""
    return BlurSettings(
        frames=frames, size=size, length=config.length, length_shape=config.length_shape,
        sharp_share=config.sharp_share, flow_share=config.flow_share, scene_speed=config.scene_speed,
        exposure=config.exposure, subframes=config.subframes, noise=config.noise, jpeg_share=config.coding_share,
        jpeg_quality=config.coding_quality, responses=config.responses, oversample=2, step=0.5)


def sharpness(luma) -> float:
    """Variance of the Laplacian of a (H, W) uint8 picture: the usual measure without a reference."""
    cv2 = opencv()
    return float(cv2.meanStdDev(cv2.Laplacian(luma, cv2.CV_16S))[1][0, 0]) ** 2


def reduced_size(shape, least: int, config: BlurConfig, rng) -> tuple[int, int]:
    """(height, width) to see pictures of a shape (H, W) at: their own or less, neither side below `least`."""
    own = rng.random() < config.full_size_share
    factor = rng.uniform(*config.reduced)
    if own:
        return shape
    factor = max(factor, least / min(shape))
    return tuple(max(round(n * min(factor, 1.0)), least) for n in shape)


def blurred_from_sharp(source, span, rng, config: BlurConfig, frames: int, crop: int):
    """A window made from sharp footage: frame, size, place and blur drawn at random.

    source: luma of a clip (see Reduced). span: (first, end) frame to use. crop: side of the window.
    Places with texture are taken more often, and the sharpest of neighbouring frames, as footage has blur of its own.
    Returns (blurred (frames, crop, crop), sharp (crop, crop)), float32.
    """
    first, end = span
    height, width = reduced_size(source.shape[1:3], crop, config, rng)
    moving = rng.random() < config.flow_share
    speed = rng.uniform(*config.scene_speed)
    around = min(neighbours(frames, speed), (end - first - 1) // 2) if moving else 0
    low, high = first + around, end - 1 - around
    number = int(rng.integers(low, high + 1))

    def look(number, place):
        rows, columns = (slice(n, n + crop) for n in place)
        return sharpness(Reduced(source, [number], (height, width)).cut([0], rows, columns)[0])

    places = [(int(rng.integers(0, height - crop + 1)), int(rng.integers(0, width - crop + 1))) for _ in range(3)]
    textured = rng.random() < 0.75
    place = max(places, key=lambda p: look(number, p)) if textured else places[0]
    near = {int(n) for n in np.clip(number + rng.integers(-6, 7, 2), low, high)} | {number}
    number = max(sorted(near), key=lambda n: look(n, place)) if len(near) > 1 else number
    if around and is_cut(source, range(number - around, number + around + 1)):
        around = 0
    settings = replace(settings_of(config, frames, (crop, crop)), flow_share=float(around > 0),
                       scene_speed=(speed, speed))
    chosen = Reduced(source, range(number - around, number + around + 1), (height, width))
    return synthesize_window(chosen, rng, settings, origin=place)


def neighbours(frames: int, speed: float) -> int:
    """True frames on each side of the centre that a scene at this speed passes through in a window."""
    return max(1, int(np.ceil(frames / 2 * speed)))


def is_cut(source, numbers) -> bool:
    """Whether the scene changes between these frames."""
    small = source.cut(list(numbers), slice(4, None, 16), slice(4, None, 16)).astype(np.float32) / 255
    return bool((np.abs(np.diff(small, axis=0)).mean((1, 2)) > _CUT).any()) if small.size else False


def window_numbers(centre: int, frames: int, span: tuple[int, int]) -> list[int]:
    """Numbers of a window's frames; the first and last of `span` (first, end) stand for those beyond them."""
    return [min(max(n, span[0]), span[1] - 1) for n in range(centre - frames // 2, centre + frames // 2 + 1)]


def pair_from_clip(blurred, sharp, span, rng, frames: int, crop: int):
    """A window of a clip that has both: (blurred (frames, crop, crop), sharp (crop, crop)), float32.

    span: (first, end) frame to use.
    """
    _, height, width = sharp.shape
    number = int(rng.integers(*span))
    rows, columns = (slice(n, n + crop) for n in (int(rng.integers(0, height - crop + 1)),
                                                 int(rng.integers(0, width - crop + 1))))
    window = np.asarray(blurred.cut(window_numbers(number, frames, span), rows, columns))
    target = np.asarray(sharp.cut([number], rows, columns))[0]
    return tuple(part.astype(np.float32) / np.float32(255) for part in (window, target))


def oriented(rng, blurred, sharp, flips: bool, turns: bool):
    """The same window flipped, and transposed and run backwards, at random where that is wanted."""
    upside, leftside, across, backwards = rng.random(4) < 0.5
    if flips and leftside:
        blurred, sharp = blurred[..., ::-1], sharp[..., ::-1]
    if flips and upside:
        blurred, sharp = blurred[..., ::-1, :], sharp[..., ::-1, :]
    if turns and across:
        blurred, sharp = blurred.swapaxes(-1, -2), sharp.swapaxes(-1, -2)
    if turns and backwards:
        blurred = blurred[::-1]
    return np.ascontiguousarray(blurred), np.ascontiguousarray(sharp)
