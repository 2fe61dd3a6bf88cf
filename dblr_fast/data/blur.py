"""Motion blur synthesised from sharp frames.

A virtual camera moves through the scene while each of the window's shutters is open: a smooth random
homography trajectory (translation, rotation, zoom, perspective) that runs on through all frames, sampled at
15 and more instants of every exposure and averaged in linear light. Objects may move at speeds of their own:
between true neighbouring frames the scene is interpolated along optical flow. Then noise and, sometimes,
JPEG coding. One seed gives one window, whatever was made before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .camera import _apply, _homographies, _motion, _path_length
from .response import RESPONSES, _response_tables, _through
from .scene import Moving, Still


@dataclass(frozen=True)
class BlurSettings:
    """What blur to draw. Lengths are in pixels of the window that comes out.

    frames: length of the window, odd. size: (height, width) of the window.
    length: (shortest, longest) mean path of the picture during the centre exposure; between them lengths
        follow a Beta distribution with the two parameters `length_shape` ((1.2, 3.2): mostly 3 to 20 of 40).
    sharp_share: probability of a window without any blur, whose target is its own centre frame.
    flow_share: probability that the scene moves along the optical flow of true neighbouring frames, at
        `scene_speed` times its true speed (needs 3 frames and more; else the scene stands still).
    exposure: (least, most) share of the frame interval during which the shutter is open.
    subframes: (least, most) instants averaged for one exposure; one a pixel of path between the two.
    noise: largest standard deviation of the noise, in luma units; half of the blurred windows have any.
    jpeg_share, jpeg_quality: how often a blurred window passes through JPEG, and at which qualities.
    responses: camera response curves to draw from; light is averaged before the response.
    oversample: how finely short blur is sampled: 1 interpolates each instant by cubic convolution, 2 enlarges the
        light twice and then interpolates linearly, which costs a fourth.
    step: pixels that objects may move before the scene is interpolated anew; 0 does so for every instant.
    """

    frames: int = 5
    size: tuple = (112, 112)
    length: tuple = (0.0, 40.0)
    length_shape: tuple = (1.2, 3.2)
    sharp_share: float = 0.15
    flow_share: float = 0.25
    scene_speed: tuple = (0.1, 1.0)
    exposure: tuple = (0.5, 1.0)
    subframes: tuple = (15, 40)
    noise: float = 0.012
    jpeg_share: float = 0.15
    jpeg_quality: tuple = (60, 95)
    responses: tuple = RESPONSES
    oversample: int = 1
    step: float = 0.0

    def __post_init__(self):
        if self.frames < 1 or self.frames % 2 == 0:
            raise ValueError(f"frames must be odd, got {self.frames}")
        if not 0 <= self.length[0] <= self.length[1]:
            raise ValueError("length must be (shortest, longest) with 0 <= shortest <= longest, "
                             f"got {self.length}")
        if self.oversample not in (1, 2):
            raise ValueError(f"oversample must be 1 or 2, got {self.oversample}")
        unknown = set(self.responses) - set(RESPONSES)
        if unknown or not self.responses:
            raise ValueError(f"responses must be among {', '.join(RESPONSES)}, got {self.responses}")


def window_rng(*key):
    """A generator of its own for every sample: window_rng(seed, clip, index) does not depend on any other."""
    return np.random.default_rng(np.random.SeedSequence(list(key)))


class _Array:
    """Frames in memory as `synthesize_window` reads them; see there for what else it can read."""

    def __init__(self, frames):
        self.frames, self.shape = frames, frames.shape

    def cut(self, numbers, rows, columns):
        return [self.frames[number, rows, columns] for number in numbers]


def _grey(picture):
    """uint8 luma of a picture, to find optical flow by."""
    if picture.dtype != np.uint8:
        picture = np.clip(picture * 255, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(picture) if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)


def _light(picture, table):
    """A picture's light: bytes are looked up, in float32; floats interpolated in the table, in float64, for which
    OpenCV warps more exactly and at twice the cost."""
    if picture.dtype == np.uint8:
        return cv2.LUT(np.ascontiguousarray(picture), _through(table, np.arange(256) / 255))
    return _through(table, picture).astype(np.float64)


def _as_float(picture):
    if picture.dtype == np.uint8:
        return picture.astype(np.float32) / np.float32(255)
    return np.clip(picture, 0, 1).astype(np.float32)


def _degrade(window, rng, settings):
    """Noise of light and of electronics, then JPEG, each some of the time."""
    if rng.random() < 0.5 and settings.noise > 0:
        sigma = settings.noise * rng.beta(1.0, 2.0)
        spread = sigma * np.sqrt(0.3 + 0.7 * np.clip(window, 0, 1))
        window = window + rng.standard_normal(window.shape, np.float32) * spread.astype(np.float32)
    if rng.random() < settings.jpeg_share:
        quality = int(rng.integers(settings.jpeg_quality[0], settings.jpeg_quality[1] + 1))
        for i, frame in enumerate(window):
            picture = np.clip(np.rint(frame * 255), 0, 255).astype(np.uint8)
            if picture.ndim == 3:
                picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
            _, code = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
            picture = cv2.imdecode(code, cv2.IMREAD_UNCHANGED)
            if picture.ndim == 3:
                picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
            window[i] = picture.astype(np.float32) / 255
    return window


def _expose(scene, times, maps, size, enlarged, flags):
    """The light of one exposure: the mean over its instants. maps: (count, 3, 3) from the window to the scene."""
    total, seen, sampled = None, None, None
    if enlarged:
        maps = np.diag([2.0, 2.0, 1.0]) @ maps
    for t, h in zip(times, maps):
        light = scene.at(t)
        if light is not seen:
            seen = sampled = light
            if enlarged:
                sampled = scene.enlarged(light)
        picture = cv2.warpPerspective(sampled, h, size[::-1], flags=flags | cv2.WARP_INVERSE_MAP,
                                      borderMode=cv2.BORDER_REFLECT_101)
        total = picture if total is None else cv2.add(total, picture, dst=total)
    return (total / len(times)).astype(np.float32, copy=False)


def synthesize_window(frames, rng, settings=BlurSettings(), origin=None):
    """One training window from sharp frames.

    frames: (K, H, W) luma or (K, H, W, 3) R, G, B, float32 in [0, 1] or uint8; the middle one, frames[K // 2], is the
        window's sharp centre. K = 1 gives a scene that stands still under a moving camera; with neighbours
        (`settings.frames` + 2 is plenty) objects can move too. H and W at least the window's size. Or anything with
        such a `shape` and a method `cut(numbers, rows, columns)` that gives parts of frames as a sequence: then only
        what the camera sees is read.
    rng: a numpy Generator (see `window_rng`).
    origin: (row, column) of the window in the picture, random if None.
    Returns (blurred (settings.frames, h, w), sharp (h, w)), each with a last dimension of 3 for colour, float32 in
    [0, 1]. `sharp` is the instant in the middle of the centre exposure. Raises ValueError when the frames are too
    small.
    """
    if not hasattr(frames, "cut"):
        frames = _Array(np.asarray(frames))
    h, w = settings.size
    shape = frames.shape
    if len(shape) not in (3, 4) or shape[1] < h or shape[2] < w:
        raise ValueError(f"frames must be (K, H, W) with H >= {h} and W >= {w}, got {shape}: "
                         "give larger frames or ask for a smaller window")
    height, width = shape[1:3]
    if origin is None:
        origin = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    top, left = (int(v) for v in origin)
    centre = shape[0] // 2

    is_sharp = rng.random() < settings.sharp_share
    shortest, longest = settings.length
    length = shortest + (longest - shortest) * rng.beta(*settings.length_shape)
    exposure = max(rng.uniform(*settings.exposure), min(1.0, length / 40))
    corners = np.array([(x, y) for y in (top, top + h - 1) for x in (left, left + w - 1)], float)
    middle = corners.mean(0)
    axis = middle + rng.normal(0, 150, 2)
    path = _motion(rng, settings.frames / 2)
    scale = 1.0
    points = np.concatenate([corners, middle[None]])
    for _ in range(3):
        scale *= length / max(_path_length(path, axis, scale, exposure, points), 1e-9)

    count = int(np.clip(np.ceil(length) + 1, *settings.subframes))
    if is_sharp:
        count, exposure = 1, 0.0
    offsets = np.linspace(-0.5, 0.5, count) if count > 1 else np.zeros(1)
    half = settings.frames // 2
    times = np.arange(-half, half + 1)[:, None] + offsets * exposure
    h_all = _homographies(path(times.ravel()) * scale, axis)

    # Read no more of the picture than the camera sees, so that cost follows the window's size.
    seen = _apply(h_all, corners).reshape(-1, 2)
    y0, x0 = (int(v) for v in np.clip(np.floor(seen.min(0)[::-1]).astype(int) - 8, 0, (top, left)))
    y1 = int(np.clip(np.ceil(seen[:, 1].max()) + 9, top + h, height))
    x1 = int(np.clip(np.ceil(seen[:, 0].max()) + 9, left + w, width))
    moving = shape[0] >= 3 and rng.random() < settings.flow_share
    speed = rng.uniform(*settings.scene_speed) if moving else 0.0
    to_light, to_luma = _response_tables(settings.responses[rng.integers(len(settings.responses))], rng)
    moving = moving and speed > 0
    local = list(frames.cut(range(shape[0]) if moving else [centre], slice(y0, y1), slice(x0, x1)))
    sharp = _as_float(local[centre if moving else 0][top - y0:top - y0 + h, left - x0:left - x0 + w])
    light = [_light(frame, to_light) for frame in local]
    scene = (Moving([_grey(frame) for frame in local], light, centre, speed, settings.step) if moving
             else Still(light[0]))

    shift_in, shift_out = np.eye(3), np.eye(3)
    shift_in[:2, 2] = left, top
    shift_out[:2, 2] = -x0, -y0
    maps = (shift_out @ h_all @ shift_in).reshape(settings.frames, count, 3, 3)
    fine = length < 10 or is_sharp
    enlarged = settings.oversample == 2 and fine and count > 1
    flags = cv2.INTER_CUBIC if fine and not enlarged else cv2.INTER_LINEAR
    window = np.stack([_through(to_luma, _expose(scene, times[i], maps[i], (h, w), enlarged, flags))
                       for i in range(settings.frames)])
    if is_sharp:
        window[half] = sharp
        if rng.random() < 0.25:
            window = _degrade(window, rng, settings)
    else:
        window = _degrade(window, rng, settings)
    return np.clip(window, 0, 1), sharp
