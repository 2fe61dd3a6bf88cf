"""Tests run against the installed package; the specification and the benchmarks come from the checkout."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory):
    """Runs in an empty folder: a Python that a test starts would import dblr_fast out of the checkout, unbuilt."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)
