"""Runs triton_interpreted.py in processes of their own: the interpreter is chosen when triton is imported."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("triton_interpreted.py")
# Its tests in two processes side by side, for the interpreter takes one core: each of these takes half of the time.
HALF = "descriptors or opcheck or compiled or engine"


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
    started = [subprocess.Popen([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", half, str(CASES)],
                                env={**os.environ, "TRITON_INTERPRET": "1"}, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True) for half in (HALF, f"not ({HALF})")]
    done = [(process.communicate()[0], process.returncode) for process in started]
    for printed, code in done:
        assert code == 0, printed[-20000:]
