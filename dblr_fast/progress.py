"""The progress bar of the command line."""

from __future__ import annotations

import sys


class Progress:
    """Context that shows frames done, frames a second and time left on stderr, when that is a terminal.

    Call it as progress(frames done, frames in all or None).
    """

    def __init__(self, stream=None):
        self._stream = sys.stderr if stream is None else stream
        self._bar = self._task = None

    def __enter__(self):
        if self._stream.isatty():
            self._bar = _bar(self._stream)
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("deblurring", total=None)
        return self

    def __call__(self, done: int, total: int | None) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=None if total is None else max(done, total))

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.stop()


def _bar(stream):
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn
        from rich.progress import Progress as Bar
        from rich.progress import TimeRemainingColumn
        from rich.text import Text
    except ImportError:
        return None  # without rich there is no bar; the summary at the end says how it went

    class Speed(ProgressColumn):
        def render(self, task):
            return Text(f"{task.speed:.3g} frames/s" if task.speed else "- frames/s")

    return Bar(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Speed(),
               TimeRemainingColumn(), TextColumn("left"), console=Console(file=stream),
               speed_estimate_period=120)
