"""Runs triton_interpreted.py in a process of its own: the interpreter is chosen when triton is imported."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("triton_interpreted.py")


def why_not():
    def version(name):
        return tuple(int(n) for n in metadata.version(name).split(".")[:2])

    try:
        if version("triton") < (3, 7) and version("numpy") >= (2, 4):
            return "the interpreter of Triton 3.6 knows numpy before 2.4 alone"
    except metadata.PackageNotFoundError:
        return "triton is not installed: pip install dblr_fast[test]"
    return None


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_in_tritons_interpreter():
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)],
                          env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-4000:]
