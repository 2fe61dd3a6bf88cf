"""What can be typed after `dblr-fast`: one dataclass a command, parsed by tyro."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from .training.config import TrainConfig


@dataclass
class Deblur:
    """Deblur a video file, or a folder of pictures."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """A video file, or a folder of pictures in natural order of names."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """A video file (its suffix names the container), or without a suffix a folder of PNG pictures."""
    model: Annotated[str, tyro.conf.arg(metavar="NAME")] = "default"
    """A shipped model ("dblr-fast info" lists them), or the path of a .safetensors file."""
    backend: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """What runs the network; auto takes the fastest that can, "dblr-fast info" lists all."""
    precision: Literal["auto", "exact", "fast", "half", "bf16"] = "auto"
    """auto: exact on a CPU, half on a GPU."""
    tile: Annotated[Literal["auto", "off"] | int, tyro.conf.arg(metavar="{auto,off,N}")] = "auto"
    """Side of the tiles in pixels; the result does not depend on it."""
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """cpu, cuda or cuda:1; auto takes a GPU when there is one."""
    codec: Annotated[str, tyro.conf.arg(metavar="NAME")] = "libx264"
    """Video encoder: libx264, libx265, ffv1 (lossless, into .mkv) and others of FFmpeg."""
    crf: Annotated[float | None, tyro.conf.arg(metavar="N")] = None
    """Constant rate factor, lower is better; None is 16 for libx264 and libx265."""
    range: Literal["auto", "limited", "full"] = "auto"
    """Range of the luma samples; auto takes the file's word, and limited when it says nothing."""
    fps: Annotated[float | None, tyro.conf.arg(metavar="N")] = None
    """Frames a second of a video made from pictures; None is 30."""
    overwrite: bool = False
    """Replace OUT if it exists; of a folder, files of the same names."""


@dataclass
class Info:
    """Show versions, what was built, which backends run here, and the models."""


@dataclass
class Train:
    """Train DBLRNet or DBLRGAN: dblr-fast train CONFIG [--section.key value ...].

    Configurations in the package, by name: dblrnet.yaml, dblrgan.yaml, dblrnet_multi.yaml, dblrnet_single.yaml
    and tiny.yaml. "dblr-fast train CONFIG --help" lists all settings, and what they are in CONFIG. For example:
    dblr-fast train tiny.yaml --data.paths FOOTAGE --folder runs/first
    """

    config: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]
    """A YAML file, or the name of a configuration in the package."""


@dataclass
class Export:
    """Write the weights of a training as a file for dblr-fast deblur --model."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a run."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """A .safetensors file."""
    weights: Literal["ema", "model", "best"] = "ema"
    """The moving average of the weights, the weights as they are, or the average at its best validation."""
    overwrite: bool = False
    """Replace OUT if it exists."""


Command = (Annotated[Deblur, tyro.conf.subcommand("deblur")] | Annotated[Info, tyro.conf.subcommand("info")]
           | Annotated[Train, tyro.conf.subcommand("train")] | Annotated[Export, tyro.conf.subcommand("export")])


def parse(argv: list[str]) -> Deblur | Info | Export | TrainConfig:
    """The command that the arguments ask for; help and mistakes leave through SystemExit (0 and 2).

    Raises Refusal where the configuration of a training cannot be read.
    """
    if argv[:1] == ["train"] and len(argv) > 1 and not argv[1].startswith("-"):
        return _parse_training(argv[1], argv[2:])
    return tyro.cli(Command, prog="dblr-fast", args=argv,
                    config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
                    description="Deblurs video with DBLRNet, and trains it. Exit codes: 0 done, 1 failed, 2 refused, "
                                "3 source damaged, 130 interrupted, 143 ended by SIGTERM.")


def _parse_training(name: str, arguments: list[str]) -> TrainConfig:
    """The file's configuration with the command line's changes to it."""
    from .training.config import TrainConfig
    from .training.configuration import flat, load

    config = load(name)
    switches = {f"--{key}" for key, value in flat(TrainConfig()).items() if isinstance(value, bool)}
    return tyro.cli(TrainConfig, prog=f"dblr-fast train {name}", args=_with_flags(arguments, switches),
                    default=config, config=(tyro.conf.HelptextFromCommentsOff,))


def _with_flags(arguments: list[str], switches: set[str]) -> list[str]:
    """`--section.key true` and `false` as tyro writes them, `--section.key` and `--section.no-key`, so that every
    setting can be given as key and value."""
    out: list[str] = []
    for word in arguments:
        before = out[-1].replace("-", "_").replace("__", "--", 1) if out else ""
        if before in switches and word.lower() in ("true", "false"):
            if word.lower() == "false":
                section, dot, key = out[-1].removeprefix("--").rpartition(".")
                out[-1] = f"--{section}{dot}no-{key}"
        else:
            out.append(word)
    return out
