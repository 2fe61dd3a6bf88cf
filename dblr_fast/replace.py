"""Files and folders that appear only when they are complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

from .errors import Refusal


@contextmanager
def replacing(target: Path):
    """Context that gives a temporary path beside `target`, with its suffix, to write a file to.

    Left without an exception, the file is flushed to the disk and takes the target's place in one step;
    otherwise it is removed and the target stays as it was. A target that is a link is followed.
    """
    target = Path(os.path.realpath(target))
    temporary = Path(_beside(target, lambda parent, stem: _new_file(parent, stem, target.suffix)))
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replacing_folder(target: Path):
    """As `replacing`, for a folder of files.

    A target that exists already keeps the files that are not among the new ones; each new one takes the
    place of its namesake in one step.
    """
    target = Path(os.path.realpath(target))
    temporary = Path(_beside(target, _new_folder))
    try:
        yield temporary
        if target.exists():
            for path in sorted(temporary.iterdir()):
                os.replace(path, target / path.name)
            temporary.rmdir()
        else:
            os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _beside(target, make):
    parent = target.parent
    if not parent.is_dir():
        raise Refusal(f"the folder {parent} for the output {target.name} does not exist; make it first")
    try:
        return make(parent, f".{target.stem[:80]}.")
    except PermissionError:
        raise Refusal(f"nothing can be written in {parent}; choose another folder for "
                      f"{target.name}") from None
    except OSError as error:
        raise Refusal(f"nothing can be written in {parent} ({error.strerror})") from None


def _new_file(parent, stem, suffix):
    handle, name = tempfile.mkstemp(prefix=stem, suffix=suffix, dir=parent)
    os.close(handle)
    os.chmod(name, 0o666 & ~_umask())
    return name


def _new_folder(parent, stem):
    name = tempfile.mkdtemp(prefix=stem, dir=parent)
    os.chmod(name, 0o777 & ~_umask())
    return name


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
