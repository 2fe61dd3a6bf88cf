"""The command line: `dblr-fast deblur IN OUT`, `train CONFIG`, `export RUN OUT`, `info`.

Exit codes: 0 done; 1 the run failed (a full disk, for instance); 2 the request was refused; 3 done, but the
source is damaged or cut off and only what could be decoded of it was written; 130 interrupted, 143 ended by
SIGTERM. Whatever is not 0 or 3 leaves no output, and an older one as it was; a training that is interrupted
leaves a checkpoint to go on from. DBLR_FAST_DEBUG=1 shows where an error came from.
"""

from __future__ import annotations

import os
import signal
import sys

from . import __version__
from .errors import Refusal

DONE, FAILED, REFUSED, INCOMPLETE, INTERRUPTED = 0, 1, 2, 3, 130


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code; argparse errors leave through SystemExit(2)."""
    argv = sys.argv[1:] if argv is None else argv
    if argv in (["--version"], ["-V"]):
        print(f"dblr-fast {__version__}")
        return DONE
    try:
        from . import commands
    except ImportError as error:
        return _fail(f"the command line needs tyro, which cannot be imported ({error}); pip install tyro, or "
                     "call dblr_fast.deblur_video from Python", REFUSED)
    training = argv[:1] == ["train"]
    try:
        command = commands.parse(argv or ["--help"])
        try:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that temporary files go
        except ValueError:
            pass  # not the main thread: whoever runs us there handles signals
        if training:
            return _train(command)
        run = {commands.Deblur: _deblur, commands.Info: _info, commands.Export: _export}[type(command)]
        return run(command)
    except KeyboardInterrupt:
        return _fail("interrupted; what the last checkpoint holds is kept" if training
                     else "interrupted; nothing was written", INTERRUPTED)
    except (Refusal, ValueError, TypeError) as error:
        return _fail(error, REFUSED)
    except (RuntimeError, MemoryError, OSError) as error:
        return _fail(error, FAILED)


def _deblur(command) -> int:
    from .progress import Progress
    from .video import deblur_video

    options = {name: getattr(command, name) for name in (
        "model", "backend", "precision", "tile", "device", "codec", "crf", "range", "fps", "overwrite")}
    with Progress() as progress:
        result = deblur_video(command.source, command.target, progress=progress, **options)
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{command.target}: {result.frames} frames of {result.width}x{result.height} in "
          f"{result.seconds:.1f} s ({result.frames / result.seconds:.3g} frames/s), "
          f"backend {result.backend}, precision {result.precision}")
    return DONE if result.complete else INCOMPLETE


def _train(config) -> int:
    from .training import train
    from .training.memory import keep_freed_memory

    keep_freed_memory()
    result = train(config)
    if result.signal is not None:
        return _fail(f"stopped after step {result.step} by {signal.Signals(result.signal).name}; the checkpoint is "
                     f"in {result.folder}, and --resume goes on from it", 128 + result.signal)
    scores = f", PSNR of Y {result.scores['psnr_y']:.2f} dB (input {result.scores['psnr_y_input']:.2f})" \
        if result.scores else ""
    if result.rank == 0:
        print(f"{result.folder}: {result.step} steps{scores}; dblr-fast export {result.folder} OUT.safetensors writes "
              "the weights")
    return DONE


def _export(command) -> int:
    from .training import export

    export(command.run, command.target, command.weights, command.overwrite)
    print(f"{command.target}: the weights of {command.run}")
    return DONE


def _info(_) -> int:
    from .info import report

    print(report())
    return DONE


def _fail(reason, code: int) -> int:
    if os.environ.get("DBLR_FAST_DEBUG") and isinstance(reason, BaseException):
        raise reason
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    print(f"dblr-fast: {lines[0]}", file=sys.stderr)
    return code
