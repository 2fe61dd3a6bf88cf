"""What FFmpeg has to say, for the few calls whose reasons it only logs."""

from __future__ import annotations

import threading
from contextlib import contextmanager

_lock = threading.Lock()


@contextmanager
def speaking(level: str):
    """Context in which FFmpeg's messages of a level ("ERROR", "VERBOSE") reach PyAV; silent again afterwards.

    Keep it short: the level holds for the whole process.
    """
    import av

    log = av.logging
    with _lock:
        before = log.get_level()
        log.set_level(getattr(log, level))
        log.set_libav_level(getattr(log, level))
        try:
            with log.Capture():  # kept from the user's own logging
                yield
        finally:
            log.set_libav_level(log.INFO)
            log.set_level(before)


def reason(error) -> str:
    """Why an av.FFmpegError was raised: FFmpeg's own message when there is one, else the error's."""
    logged = getattr(error, "log", None)
    if logged and isinstance(logged[-1], str) and logged[-1].strip():
        return logged[-1].strip().splitlines()[0]
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
