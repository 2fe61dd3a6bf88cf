"""Motion blur synthesised from sharp frames.

A virtual camera moves through the scene while each of the window's shutters is open: a smooth random
homography trajectory (translation, rotation, zoom, perspective) that runs on through all frames, sampled at
15 and more instants of every exposure and averaged in linear light. Objects may move at speeds of their own:
between true neighbouring frames the scene is interpolated along optical flow. Then noise and, sometimes,
JPEG coding. One seed gives one window, whatever was made before it.
"""

from dataclasses import dataclass

import cv2
import numpy as np

RESPONSES = ("gamma", "srgb", "linear", "s_curve")
_SPLINE_STEP = 0.5
_LUT = 4096


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

    def __post_init__(self):
        if self.frames < 1 or self.frames % 2 == 0:
            raise ValueError(f"frames must be odd, got {self.frames}")
        if not 0 <= self.length[0] <= self.length[1]:
            raise ValueError("length must be (shortest, longest) with 0 <= shortest <= longest, "
                             f"got {self.length}")
        unknown = set(self.responses) - set(RESPONSES)
        if unknown or not self.responses:
            raise ValueError(f"responses must be among {', '.join(RESPONSES)}, got {self.responses}")


def window_rng(*key):
    """A generator of its own for every sample: window_rng(seed, clip, index) does not depend on any other."""
    return np.random.default_rng(np.random.SeedSequence(list(key)))


def _response_tables(kind, rng):
    """(to_linear, to_luma): two tables over [0, 1], each other's inverse."""
    grid = np.linspace(0.0, 1.0, _LUT)
    if kind == "linear":
        linear = grid
    elif kind == "gamma":
        linear = grid ** rng.uniform(1.8, 2.4)
    elif kind == "srgb":
        linear = np.where(grid <= 0.04045, grid / 12.92, ((grid + 0.055) / 1.055) ** 2.4)
    else:
        # A film-like S: contrast added around the middle of a gamma curve, still monotonic.
        gamma = grid ** rng.uniform(1.8, 2.4)
        amount = rng.uniform(0.2, 0.8)
        linear = (1 - amount) * gamma + amount * (1 - np.sqrt(1 - grid))
        linear = linear / linear[-1]
    inverse = np.interp(grid, linear, grid)
    return linear, inverse


def _through(table, x):
    """Look x (any shape, clipped to [0, 1]) up in a table, linearly between its entries."""
    position = np.clip(x, 0.0, 1.0) * np.float32(_LUT - 1)
    low = np.minimum(position.astype(np.int32), _LUT - 2)
    table = table.astype(np.float32)
    start = table[low]
    return start + (position - low) * (table[low + 1] - start)


def _motion(rng, span):
    """A smooth random path p(t) -> (len(t), 6): tx, ty, rotation, zoom and two perspectives, p(0) = 0.

    One drift for the whole window plus a few oscillations of hand-shake, weighted at random, so that some
    windows pan, some turn and some tremble. Units are pixels at a distance of 100 pixels from the axis.
    """
    weight = np.array([1.0, 1.0, 0.6, 0.35, 0.12, 0.12]) * rng.exponential(1.0, 6)
    drift = rng.normal(size=6) * weight * rng.uniform(0.2, 1.0)
    waves = 3
    frequency = rng.uniform(0.3, 3.5, (waves, 1))
    phase = rng.uniform(0, 2 * np.pi, (waves, 6))
    strength = rng.normal(size=(waves, 6)) * weight * rng.uniform(0.1, 0.7) / frequency

    def path(t):
        t = np.asarray(t)[:, None, None]
        swing = np.sin(frequency * t + phase) - np.sin(phase)
        return drift * t[:, 0] + (swing * strength).sum(1)

    return path


def _homographies(p, axis):
    """Parameters (n, 6) -> homographies (n, 3, 3) about the point `axis` (x, y)."""
    tx, ty, turn, zoom, gx, gy = p.T
    turn, scale = turn / 100, np.exp(np.clip(zoom / 100, -0.5, 0.5))
    n = len(p)
    h = np.zeros((n, 3, 3))
    h[:, 0, 0] = h[:, 1, 1] = scale * np.cos(turn)
    h[:, 0, 1] = -scale * np.sin(turn)
    h[:, 1, 0] = scale * np.sin(turn)
    h[:, 0, 2], h[:, 1, 2], h[:, 2, 2] = tx, ty, 1
    h[:, 2, 0] = np.clip(gx / 1e4, -6e-4, 6e-4)
    h[:, 2, 1] = np.clip(gy / 1e4, -6e-4, 6e-4)
    to, back = np.eye(3), np.eye(3)
    to[:2, 2], back[:2, 2] = axis, [-a for a in axis]
    return to @ h @ back


def _apply(h, points):
    """Homographies (n, 3, 3) on points (m, 2) -> (n, m, 2)."""
    q = np.concatenate([points, np.ones((len(points), 1))], 1) @ h.transpose(0, 2, 1)
    return q[..., :2] / q[..., 2:]


def _path_length(path, axis, scale, exposure, points):
    """Mean length of the points' paths during the centre exposure when the motion is scaled by `scale`."""
    moved = _apply(_homographies(path(np.linspace(-exposure / 2, exposure / 2, 17)) * scale, axis), points)
    return np.linalg.norm(np.diff(moved, axis=0), axis=2).sum(0).mean()


class _Scene:
    """The scene's light at any instant: frames around the centre, interpolated along optical flow."""

    def __init__(self, luma, light, centre, speed):
        self.light, self.centre, self.speed = light, centre, speed
        self.still = speed == 0 or len(light) < 3
        if self.still:
            return
        picture = [np.clip(frame * 255, 0, 255).astype(np.uint8) for frame in luma]
        dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self.flow = [dis.calc(a, b, None) for a, b in zip(picture[:-1], picture[1:])]
        rows, columns = np.mgrid[0:luma[0].shape[0], 0:luma[0].shape[1]].astype(np.float32)
        self.grid = np.stack([columns, rows], -1)

    def at(self, t):
        """The light at time t, in frames from the window's centre."""
        if self.still:
            return self.light[self.centre]
        position = float(np.clip(self.centre + t * self.speed, 0, len(self.light) - 1))
        index = min(int(position), len(self.flow) - 1)
        share = position - index
        if share < 1e-6:
            return self.light[index]
        flow = self.flow[index]
        before = cv2.remap(self.light[index], self.grid - np.float32(share) * flow, None,
                           cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        after = cv2.remap(self.light[index + 1], self.grid + np.float32(1 - share) * flow, None,
                          cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return before + np.float32(share) * (after - before)


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
            _, code = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
            window[i] = cv2.imdecode(code, cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255
    return window


def synthesize_window(frames, rng, settings=BlurSettings(), origin=None):
    """One training window from sharp frames.

    frames: (K, H, W) float32 luma in [0, 1]; the middle one, frames[K // 2], is the window's sharp centre.
        K = 1 gives a scene that stands still under a moving camera; with neighbours (`settings.frames` + 2
        is plenty) objects can move too. H and W at least the window's size.
    rng: a numpy Generator (see `window_rng`).
    origin: (row, column) of the window in the picture, random if None.
    Returns (blurred (settings.frames, h, w), sharp (h, w)), float32 in [0, 1]. `sharp` is the instant in the
    middle of the centre exposure. Raises ValueError when the frames are too small.
    """
    frames = np.asarray(frames)
    h, w = settings.size
    if frames.ndim != 3 or frames.shape[1] < h or frames.shape[2] < w:
        raise ValueError(f"frames must be (K, H, W) with H >= {h} and W >= {w}, got {frames.shape}: "
                         "give larger frames or ask for a smaller window")
    height, width = frames.shape[1:]
    if origin is None:
        origin = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    top, left = (int(v) for v in origin)
    centre = len(frames) // 2
    sharp = np.clip(frames[centre, top:top + h, left:left + w], 0, 1).astype(np.float32)

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
    y0, x0 = np.clip(np.floor(seen.min(0)[::-1]).astype(int) - 8, 0, (top, left))
    y1 = int(np.clip(np.ceil(seen[:, 1].max()) + 9, top + h, height))
    x1 = int(np.clip(np.ceil(seen[:, 0].max()) + 9, left + w, width))
    region = int(y0), y1, int(x0), x1
    moving = len(frames) >= 3 and rng.random() < settings.flow_share
    speed = rng.uniform(*settings.scene_speed) if moving else 0.0
    used = frames if moving else frames[centre:centre + 1]
    to_light, to_luma = _response_tables(settings.responses[rng.integers(len(settings.responses))], rng)
    local = [frame[region[0]:region[1], region[2]:region[3]] for frame in used]
    scene = _Scene(local, [_through(to_light, frame) for frame in local], centre if moving else 0, speed)

    shift_in, shift_out = np.eye(3), np.eye(3)
    shift_in[:2, 2] = left, top
    shift_out[:2, 2] = -region[2], -region[0]
    maps = shift_out @ h_all @ shift_in
    kernel = cv2.INTER_CUBIC if length < 10 or is_sharp else cv2.INTER_LINEAR
    flags = kernel | cv2.WARP_INVERSE_MAP
    window = np.empty((settings.frames, h, w), np.float32)
    for i in range(settings.frames):
        total = np.zeros((h, w), np.float32)
        for j in range(count):
            k = i * count + j
            total += cv2.warpPerspective(scene.at(times[i, j]), maps[k], (w, h), flags=flags,
                                         borderMode=cv2.BORDER_REFLECT_101)
        window[i] = _through(to_luma, total / count)
    if is_sharp:
        window[half] = sharp
        if rng.random() < 0.25:
            window = _degrade(window, rng, settings)
    else:
        window = _degrade(window, rng, settings)
    return np.clip(window, 0, 1), sharp
