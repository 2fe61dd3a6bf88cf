"""What a training starts from: initial weights, or those of a file or of another run."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint import load_model
from ..errors import Refusal
from ..model import DBLRNet
from .config import ModelConfig


def initial_model(config: ModelConfig, with_weights: bool = True) -> DBLRNet:
    """The DBLRNet that a configuration describes, on the CPU, with the weights it starts from (unless a
    checkpoint is about to replace them).

    Raises Refusal where `weights` names no model, one of another shape, or one of another kind of luma.
    """
    model = DBLRNet(config.frames, config.variant, config.tail_skip, config.width, config.blocks, config.init)
    if config.weights and with_weights:
        source = weights_of(config.weights)
        for key in ("variant", "frames", "tail_skip", "width"):
            _compare(config.weights, key, getattr(source, key), getattr(config, key))
        _compare(config.weights, "blocks", len(source.blocks), config.blocks)
        model.load_state_dict(source.state_dict())
    return model


def weights_of(name: str) -> DBLRNet:
    """A shipped model, one of a .safetensors file, or the averaged weights of a run's folder."""
    if Path(name).is_dir():
        from .exporting import model_of

        return model_of(name, "ema")
    model = load_model(name)
    for key, wanted in (("luma_matrix", "bt601"), ("luma_range", "full")):
        if model.metadata[key] != wanted:
            raise Refusal(f"model {name} was trained on luma with {key} {model.metadata[key]}; training data is "
                          f"{wanted} here, so start from another model")
    return model


def _compare(name, key, theirs, ours) -> None:
    if theirs != ours:
        raise Refusal(f"model.weights {name} has {key} {theirs} and the configuration says {ours}; set model.{key} "
                      f"to {theirs}, or start from other weights")
