"""The scene in front of the camera: its light at any instant between true neighbouring frames."""

from __future__ import annotations

import cv2
import numpy as np

# Values half way between pixels, as video coding interpolates them: flat over more of the spectrum than cubic.
_HALF_WAY = np.array([1, -5, 20, 20, -5, 1], np.float32) / 32


def enlarge(light):
    """(H, W) or (H, W, 3) -> (2 H - 1, 2 W - 1[, 3]): every second value is a pixel, those between are interpolated."""
    def between(picture, axis):
        kernel = _HALF_WAY[None] if axis else _HALF_WAY[:, None]
        return cv2.filter2D(picture, -1, kernel, anchor=(2, 0) if axis else (0, 2), borderType=cv2.BORDER_REFLECT_101)

    height, width = light.shape[:2]
    large = np.empty((2 * height - 1, 2 * width - 1, *light.shape[2:]), np.float32)
    across = between(light, 1)
    large[::2, ::2], large[::2, 1::2] = light, across[:, :-1]
    large[1::2, ::2], large[1::2, 1::2] = between(light, 0)[:-1], between(across, 0)[:-1, :-1]
    return large


def flow_between(a, b):
    """Optical flow (DIS) from one (H, W) uint8 frame to another -> (H, W, 2) float32, pixels along x and y.

    Small and flat frames are padded: DIS takes its coarsest scale from the width alone, and reads beyond the picture
    when that leaves fewer rows than a patch has.
    """
    height, width = a.shape
    down, right = max(32, int(np.ceil(0.36 * max(width, 32)))) - height, 32 - width
    if down > 0 or right > 0:
        a, b = (cv2.copyMakeBorder(p, 0, max(down, 0), 0, max(right, 0), cv2.BORDER_REPLICATE) for p in (a, b))
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST).calc(a, b, None)
    return np.ascontiguousarray(flow[:height, :width])


class Still:
    """A scene that stands still. light: (H, W) or (H, W, 3) float32."""

    def __init__(self, light):
        self.light, self.large = light, None

    def at(self, t):
        return self.light

    def enlarged(self, light):
        """`enlarge` of what `at` gave; kept, as it is always the same."""
        if self.large is None:
            self.large = enlarge(light)
        return self.large


class Moving:
    """A scene that moves along the optical flow between frames (DIS).

    grey: uint8 (H, W) frames. light: the same as float32 light, (H, W) or (H, W, 3). centre: number of the frame at
    time 0. speed: frames that pass while one does for the camera. step: see `at`.
    """

    def __init__(self, grey, light, centre, speed, step):
        self.grey, self.light, self.centre, self.speed, self.step = grey, light, centre, speed, step
        rows, columns = np.mgrid[0:grey[0].shape[0], 0:grey[0].shape[1]].astype(np.float32)
        self.grid = np.stack([columns, rows], -1)
        self.flows, self.kept = {}, (None, None)

    def at(self, t):
        """The light at time t, in frames of the camera from the window's centre; the ends hold beyond the frames.

        Unless `step` is 0, times are rounded so that hardly anything moves more than `step` pixels from one picture
        to the next: then many times share one, which is kept until another is asked for.
        """
        position = float(np.clip(self.centre + t * self.speed, 0, len(self.light) - 1))
        index = min(int(position), len(self.light) - 2)
        flow, steps = self._flow(index)
        share = position - index
        if steps:
            share = round(share * steps) / steps
        if self.kept[0] != (index, share):
            self.kept = (index, share), self._between(index, share, flow)
        return self.kept[1]

    def _between(self, index, share, flow):
        if share < 1e-6 or share == 1:
            return self.light[index + int(share)]
        before, after = (cv2.remap(self.light[index + i], self.grid + np.float32(i - share) * flow, None,
                                   cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for i in (0, 1))
        return before + np.float32(share) * (after - before)

    def enlarged(self, light):
        """`enlarge` of what `at` gave."""
        return enlarge(light)

    def _flow(self, index):
        """Flow from a frame to the next, and into how many steps that time is cut."""
        if index not in self.flows:
            flow = flow_between(self.grey[index], self.grey[index + 1])
            steps = 0
            if self.step:
                fast = np.percentile(np.abs(flow[::4, ::4]).max(-1), 98)
                steps = int(np.clip(np.ceil(fast / self.step), 1, 256))
            self.flows[index] = flow, steps
        return self.flows[index]
