"""Every command and every line of code in README.md runs: here, or in the gate (make demo, make test)."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
RUN_BY_THE_GATE = {"make demo", "make test"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with a small blurred.mp4 in it."""
    av = pytest.importorskip("av", reason="PyAV is not installed, and the README's commands read a video")
    import numpy as np

    with av.open(str(tmp_path / "blurred.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        rng = np.random.default_rng(0)
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (32, 48, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (tmp_path / "footage").mkdir()
    with av.open(str(tmp_path / "footage" / "sharp.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 128, "yuv420p"
        picture = np.kron(rng.integers(0, 255, (16, 20, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
        for shift in range(12):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, shift, 1).copy(), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def commands(block):
    lines = [line.split("#")[0].strip() for line in block.splitlines()]
    return [line for line in lines if line and line not in RUN_BY_THE_GATE]


@pytest.mark.parametrize("block", [block for block in blocks("sh") if commands(block)], ids=lambda b: b.split("\n")[0])
def test_commands_of_a_block(block, folder):
    """One after the other, in one folder: a later one may take what an earlier one made."""
    for command in commands(block):
        words = shlex.split(command)
        words = {"dblr-fast": [sys.executable, "-m", "dblr_fast"], "python": [sys.executable]}[words[0]] + words[1:]
        words = [str(ROOT / w) if w.startswith("benchmarks/") and w.endswith(".py") else w for w in words]
        done = subprocess.run(words, capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_code(folder):
    code, = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "sharp.mp4").stat().st_size and (folder / "mine.safetensors").stat().st_size


def test_gate_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    for command in RUN_BY_THE_GATE:
        assert re.search(rf"^{command.split()[1]}:", makefile, re.M)
        assert command in (ROOT / ".ci" / "run").read_text()


def test_pictures_and_files_named_exist():
    links = re.findall(r"\]\(([\w/.]+)\)", README)
    for name in links + re.findall(r"`((?:examples|tests|benchmarks)/[\w./]+)`", README):
        assert (ROOT / name).exists(), name
