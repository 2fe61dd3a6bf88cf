"""Training data: reading sharp footage as luma, and synthesising motion blur from it.

Needs OpenCV, and PyAV for video files (`pip install "dblr_fast[train]"`); both are imported on first use, so
that importing this package needs neither.
"""

_HOME = {
    "BlurSettings": "blur",
    "synthesize_window": "blur",
    "window_rng": "blur",
    "iter_luma": "clips",
    "load_luma_clip": "clips",
}
__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
