"""Training: `train(config)` runs the loop, `load(name)` reads a configuration, `export(run, file)` writes weights.

first_weights, pool, pack and recipe are the scripts that made the shipped weights. Nothing here is imported by
`import dblr_fast`; what a name needs is loaded on first use.
"""

from importlib import import_module

_PUBLIC = {"TrainConfig": "config", "export": "exporting", "load": "configuration", "train": "loop"}

__all__ = sorted(_PUBLIC)


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
