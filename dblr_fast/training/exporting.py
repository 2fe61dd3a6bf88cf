"""From a run's folder to a file of weights that `dblr-fast deblur --model` takes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from ..checkpoint import load_model, read_metadata, save_model
from ..errors import Refusal
from ..model import DBLRNet
from . import state as states
from .configuration import parsed

CHOICES = ("ema", "model", "best")


def model_of(run: str | os.PathLike, weights: str = "ema") -> DBLRNet:
    """The DBLRNet of a run, in evaluation mode: the moving average of its weights ("ema"), the weights as they
    are ("model"), or the average at its best validation ("best"). Raises Refusal where the run has none."""
    return _model(states.load(run), run, weights)


def _model(state: dict, run, weights: str) -> DBLRNet:
    if weights not in CHOICES:
        raise Refusal(f"weights must be one of {', '.join(CHOICES)}; got {weights!r}")
    if weights == "best":
        path = Path(run) / "best.safetensors"
        if not path.is_file():
            raise Refusal(f"the run {run} has no best weights, as it never validated; export ema")
        return load_model(path)
    part = _settings(state)["model"]
    with torch.device("meta"):
        model = DBLRNet(part["frames"], part["variant"], part["tail_skip"], part["width"], part["blocks"])
    learning = state["learning"]
    tensors = learning["average"] if weights == "ema" else learning["generator"]["network"]
    model.load_state_dict({k: t.float() if t.is_floating_point() else t for k, t in tensors.items()}, assign=True)
    return model.eval()


def export(run: str | os.PathLike, target: str | os.PathLike, weights: str = "ema",
           overwrite: bool = False) -> Path:
    """Writes a run's weights as a safetensors file with metadata: what it was trained on and how, and its scores.

    The file appears when it is complete. Raises Refusal for a folder without a checkpoint, a suffix other than
    .safetensors, or a file that is there already (unless overwrite).
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise Refusal(f"weights are written as a .safetensors file; got {target}")
    if target.exists() and not overwrite:
        raise Refusal(f"{target} exists already; give --overwrite to replace it")
    state = states.load(run)
    model = _model(state, run, weights)
    text = read_metadata(Path(run) / "best.safetensors") if weights == "best" else metadata(state, weights)
    save_model(model, target, text)
    return target


def metadata(state: dict, weights: str) -> dict[str, str]:
    """The string map of a safetensors file. state: of a checkpoint; its configuration, step, scores, world."""
    settings = _settings(state)
    data, loss, part = settings["data"], settings["loss"], settings["optimiser"]
    training = {
        "steps": state["step"], "batch": settings["batch"] * state["world"], "crop": data["crop"],
        "loss": f"content + {loss['alpha']:g} * adversarial ({loss['generator']})" if loss["alpha"] else "content",
        "optimiser": f"{part['name']}, {part['lr']:g}, {settings['schedule']['kind']}",
        "start": settings["model"]["weights"] or settings["model"]["init"],
        "weights": f"moving average, {settings['ema']:g}" if weights != "model" and settings["ema"] else "as trained"}
    if training["start"] not in ("paper", "identity"):
        training["start"] = Path(training["start"]).name
    # Names of folders alone: whole paths say more of a machine than of a training.
    names = ", ".join(Path(path).name for path in data["paths"])
    return {"format_version": "1", "luma_matrix": "bt601", "luma_range": "full", "trained_on": names,
            "training": json.dumps(training),
            "scores": json.dumps({name: round(value, 4) for name, value in state["scores"].items()})}


def _settings(state: dict) -> dict:
    return parsed(state["configuration"])
