"""How a picture is cut into tiles whose results agree with the whole picture's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def halo_of(body: int) -> int:
    """Pixels of context that an output pixel sees on each side: one a layer (35 for Table I).

    body: number of convolutions between the stem (two layers) and the tail (three).
    """
    return 2 + body + 3


@dataclass(frozen=True)
class Tile:
    """Rows y0..y1 and columns x0..x1 of the picture, computed from rows cy0..cy1 and columns cx0..cx1.

    The crop ends at the picture's border or `halo` pixels outside the tile, so that the zeros that pad the
    crop are the picture's own, or too far away to matter.
    """

    y0: int
    y1: int
    x0: int
    x1: int
    cy0: int
    cy1: int
    cx0: int
    cx1: int

    @property
    def crop_size(self) -> tuple[int, int]:
        return self.cy1 - self.cy0, self.cx1 - self.cx0

    @property
    def valid(self) -> tuple[int, int, int, int]:
        """(y0, y1, x0, x1) of the tile within its crop."""
        return self.y0 - self.cy0, self.y1 - self.cy0, self.x0 - self.cx0, self.x1 - self.cx0

    def crop(self, frames):
        return frames[:, :, self.cy0:self.cy1, self.cx0:self.cx1]


def _spans(length: int, parts: int, halo: int) -> list[tuple[int, int, int, int]]:
    """Cuts 0..length into equal parts: (start, end, start with halo, end with halo)."""
    edges = [length * i // parts for i in range(parts + 1)]
    return [(a, b, max(0, a - halo), min(length, b + halo)) for a, b in zip(edges, edges[1:])]


def grid(height: int, width: int, rows: int, columns: int, halo: int) -> list[Tile]:
    return [Tile(y0, y1, x0, x1, cy0, cy1, cx0, cx1)
            for y0, y1, cy0, cy1 in _spans(height, rows, halo)
            for x0, x1, cx0, cx1 in _spans(width, columns, halo)]


def plan(height: int, width: int, tile: str | int, halo: int, workspace: int,
         workspace_bytes: Callable[[int, int], int]) -> list[Tile]:
    """The tiles of a picture.

    tile: "off" for one, a side in pixels, or "auto": of all grids whose largest crop fits into `workspace`
    bytes the one that computes the fewest pixels; when none fits, the one with the smallest crops.
    """
    if tile == "off":
        return grid(height, width, 1, 1, halo)
    if isinstance(tile, int):
        return grid(height, width, -(-height // tile), -(-width // tile), halo)
    best = None
    smallest = max(1, halo // 2)  # below this, nearly all the work is halo
    for columns in range(1, max(1, width // smallest) + 1):
        if best is not None and not best[0][0] and best[0][1] <= height * sum(
                s[3] - s[2] for s in _spans(width, columns, halo)):
            break  # even uncut rows would now cost more than the best grid
        for rows in range(1, max(1, height // smallest) + 1):
            ys, xs = _spans(height, rows, halo), _spans(width, columns, halo)
            largest = max(s[3] - s[2] for s in ys), max(s[3] - s[2] for s in xs)
            need = workspace_bytes(*largest)
            area = sum(s[3] - s[2] for s in ys) * sum(s[3] - s[2] for s in xs)
            fits = need <= workspace
            key = (not fits, area if fits else need)
            if best is None or key < best[0]:
                best = key, rows, columns
            if fits:
                break  # more rows only add halo
    return grid(height, width, best[1], best[2], halo)
