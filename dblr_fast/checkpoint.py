"""Weights on disk: safetensors files with what a user must know about them in the header.

The header's string map ("metadata") holds: format ("dblr_fast"), variant, frames, tail_skip, width, blocks
(how to build the network), luma_matrix and luma_range (what its input means), and free text such as
trained_on, scores and licence. Loading reads numbers and text and never runs code.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .colour import RANGES, WEIGHTS
from .errors import Refusal
from .model import VARIANTS, DBLRNet
from .replace import replacing

DEFAULT = "dblrnet"
FOLDER = Path(__file__).parent / "weights"

# Values that a header without the key stands for, and the largest that are believed.
_DEFAULTS = {"variant": "3d", "frames": "5", "tail_skip": "true", "width": "64", "blocks": "14",
             "luma_matrix": "bt601", "luma_range": "full"}
_LIMITS = {"frames": 99, "width": 4096, "blocks": 999}


def models() -> dict[str, Path]:
    """The models that come with the package: name -> file."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.safetensors"))}


def find(name_or_path: str | os.PathLike) -> Path:
    """The file of a shipped model ("default" is one), or the path itself. Raises Refusal when there is
    none."""
    name, shipped = os.fspath(name_or_path), models()
    if name == "default":
        name = DEFAULT
    if name in shipped:
        return shipped[name]
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise Refusal(f"model {name} is a folder; give a .safetensors file")
    if path.suffix or len(path.parts) > 1:
        raise Refusal(f"there is no model file {name}")
    known = ", ".join(shipped) or "none is in this installation"
    raise Refusal(f"there is no model {name!r}; known ones: {known}; or give the path of a .safetensors file")


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The header's string map of a safetensors file. Raises Refusal when it cannot be read."""
    with _opened(path) as file:
        return dict(file.metadata() or {})


def load_model(name_or_path: str | os.PathLike = "default", device: torch.device | str = "cpu") -> DBLRNet:
    """A DBLRNet in evaluation mode, with the file's string map as its attribute `metadata`.

    name_or_path: a name out of `models()`, "default", or the path of a safetensors file. A file without
        metadata is taken for the paper's network (Table I: five frames, 64 channels, 14 blocks).
    Raises Refusal (a ValueError) when there is no such file, when it is not a safetensors file, or when a
    tensor is missing, unexpected, of another shape or not finite; the message names the first such tensor.
    """
    path = find(name_or_path)
    with _opened(path) as file:
        metadata = dict(file.metadata() or {})
        state = {name: file.get_tensor(name) for name in file.keys()}
    with torch.device("meta"):  # no memory and no random numbers are spent on weights about to be replaced
        model = DBLRNet(**_architecture(metadata, path))
    wanted = model.state_dict()
    _compare(state, wanted, path)
    state = {name: t.to(wanted[name].dtype).contiguous() for name, t in state.items()}
    model.load_state_dict(state, assign=True)
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise Refusal(f"model {path}: tensor {name} holds values that are not finite; "
                          "train or fetch it anew")
    model.metadata = {**_DEFAULTS, **metadata}
    return model.to(device).eval()


def save_model(model: DBLRNet, path: str | os.PathLike, metadata: dict[str, str] | None = None) -> None:
    """Writes the weights and running statistics of a DBLRNet as a safetensors file.

    metadata: text to keep beside what describes the network itself (which always comes from the model);
        luma_matrix ("bt601" unless given; bt709, bt2020) and luma_range ("full" unless given: 0 is black and
        1 white; "limited": 16/255 is black and 235/255 white) say what its input means and are honoured when
        pictures are read. Other values become str.
    The file appears only when it is complete. Raises Refusal for metadata that load_model would refuse and
    OSError when it cannot be written.
    """
    from safetensors.torch import save

    header = {key: str(value) for key, value in {**_DEFAULTS, **(metadata or {})}.items()}
    header.update(format="dblr_fast", variant=model.variant, frames=str(model.frames), width=str(model.width),
                  blocks=str(len(model.blocks)), tail_skip=str(model.tail_skip).lower())
    _architecture(header, path)
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    data = save(tensors, header)
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(data)


def _opened(path):
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(os.fspath(path), framework="pt")
    except FileNotFoundError:
        raise Refusal(f"there is no model file {path}") from None
    except (SafetensorError, OSError) as error:
        raise Refusal(f"model {path} is not a readable safetensors file ({error})") from None


def _architecture(metadata, path) -> dict:
    """Constructor arguments out of the string map; every value is checked before anything is built."""
    known = {**_DEFAULTS, **metadata}

    def choice(key, choices):
        if known[key] not in choices:
            raise Refusal(f"model {path}: {key} must be one of {', '.join(choices)}; it says {known[key]!r}")
        return known[key]

    arguments = {"variant": choice("variant", VARIANTS),
                 "tail_skip": choice("tail_skip", ("true", "false")) == "true"}
    choice("luma_matrix", tuple(WEIGHTS))
    choice("luma_range", RANGES)
    for key, limit in _LIMITS.items():
        text = known[key]
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= limit):
            raise Refusal(f"model {path}: {key} must be a number from 1 to {limit}; it says {text!r}")
        arguments[key] = int(text)
    odd = arguments["frames"] == 1 if arguments["variant"] == "single" else arguments["frames"] % 2 == 1
    if not odd or (arguments["variant"] != "single" and arguments["frames"] < 3):
        raise Refusal(f"model {path}: variant {arguments['variant']!r} does not go with {known['frames']} "
                      "frames")
    return arguments


def _compare(state, wanted, path) -> None:
    for name, tensor in wanted.items():
        if name not in state:
            raise Refusal(f"model {path}: tensor {name} of shape {tuple(tensor.shape)} is missing")
        if state[name].shape != tensor.shape:
            raise Refusal(f"model {path}: tensor {name} should have shape {tuple(tensor.shape)}, the file "
                          f"has {tuple(state[name].shape)}")
        if state[name].is_floating_point() != tensor.is_floating_point():
            raise Refusal(f"model {path}: tensor {name} should be of type {tensor.dtype}, the file has "
                          f"{state[name].dtype}")
    for name in state:
        if name not in wanted:
            raise Refusal(f"model {path}: tensor {name} is not part of this network")
