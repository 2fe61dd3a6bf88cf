"""Training data: published sets of blurred and sharp pairs, and motion blur synthesised from any sharp footage.

`training_set(config, frames, seed)` gives endless numbered samples, `batches` prepares them in worker processes,
`validation_set(config, frames)` gives fixed windows with their colours, `dump` shows samples as pictures.
OpenCV and PyAV are imported on first use, so that importing this package needs neither.
"""

_HOME = {
    "BlurConfig": "config",
    "DataConfig": "config",
    "batches": "loading",
    "dump": "sheets",
    "dump_batch": "sheets",
    "training_set": "training",
    "validation_set": "validation",
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
