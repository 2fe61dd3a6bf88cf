"""The virtual camera: smooth random paths of homographies, and how far they move the picture."""

from __future__ import annotations

import numpy as np


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
