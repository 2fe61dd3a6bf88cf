"""dblr_fast: DBLRNet video deblurring with fused kernels.

``deblur_video(source, target)`` restores a video file or a folder of pictures, ``deblur(frames)`` frames in
memory, ``DBLRNet`` is the network for training and inference. Importing compiles nothing, probes no device
and prints nothing; what a call needs is loaded by that call.
"""

from __future__ import annotations

from importlib import import_module

from . import backends as backends  # a package that is called: backends() -> {name: None or why it is off}

__version__ = "0.1.0"

# Public name -> the module that holds it, loaded on first use.
_PUBLIC = {
    "DBLRNet": "model",
    "Engine": "engine",
    "deblur": "frames",
    "deblur_video": "video",
    "load_model": "checkpoint",
    "models": "checkpoint",
    "precision": "levels",
    "save_model": "checkpoint",
    "use_backend": "backends",
}

__all__ = sorted([*_PUBLIC, "backends"])


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dblr_fast' has no attribute {name!r}")
    return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__():
    return sorted({*globals(), *_PUBLIC})
