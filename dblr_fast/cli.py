"""The command line: `dblr-fast deblur IN OUT`, `dblr-fast info`.

Exit codes: 0 done; 1 the run failed (a full disk, for instance); 2 the request was refused; 3 done, but the
source is damaged or cut off and only what could be decoded of it was written; 130 interrupted. Whatever is
not 0 or 3 leaves no output, and an older one as it was. DBLR_FAST_DEBUG=1 shows where an error came from.
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
    command = commands.parse(argv or ["--help"])
    try:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that temporary files go
    except ValueError:
        pass  # not the main thread: whoever runs us there handles signals
    try:
        return _info() if isinstance(command, commands.Info) else _deblur(command)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was written", INTERRUPTED)
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


def _info() -> int:
    from .info import report

    print(report())
    return DONE


def _fail(reason, code: int) -> int:
    if os.environ.get("DBLR_FAST_DEBUG") and isinstance(reason, BaseException):
        raise reason
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    print(f"dblr-fast: {lines[0]}", file=sys.stderr)
    return code
