"""The sliding window over a stream of pictures."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def windows(items: Iterable[Item], radius: int) -> Iterator[tuple[Item, ...]]:
    """One tuple of 2 * radius + 1 neighbours for each item, the item itself in the middle.

    The first and the last item stand for those before and after the ends. No more than 2 * radius + 1 items
    are held at any time, and an item comes out as soon as the `radius` after it are there.
    """
    held: deque[Item] = deque(maxlen=2 * radius + 1)
    owed = 0
    for item in items:
        held.extend([item] * (1 if held else radius + 1))
        owed += 1
        if len(held) == held.maxlen:
            yield tuple(held)
            owed -= 1
    while owed:
        held.append(held[-1])
        if len(held) == held.maxlen:
            yield tuple(held)
            owed -= 1
