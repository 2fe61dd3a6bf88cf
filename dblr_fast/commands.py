"""What can be typed after `dblr-fast`: one dataclass a command, parsed by tyro."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


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


Command = Annotated[Deblur, tyro.conf.subcommand("deblur")] | Annotated[Info, tyro.conf.subcommand("info")]


def parse(argv: list[str]) -> Deblur | Info:
    """The command that the arguments ask for; help and mistakes leave through SystemExit (0 and 2)."""
    return tyro.cli(Command, prog="dblr-fast", args=argv,
                    config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
                    description="Deblurs video with DBLRNet. Exit codes: 0 done, 1 failed, 2 refused, "
                                "3 source damaged, 130 interrupted.")
