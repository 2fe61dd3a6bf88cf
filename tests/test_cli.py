"""The command line, as a user has it: exit codes, one sentence on stderr, nothing left behind."""

import os
import pty
import signal
import subprocess
import sys

import pytest
from clips import decoded, leftovers, make_clip

import dblr_fast
from dblr_fast import cli, info, progress


@pytest.fixture
def model(tmp_path):
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "m.safetensors"
    network = dblr_fast.DBLRNet(width=8, blocks=1, init="identity")
    dblr_fast.save_model(network, path, {"trained_on": "nothing"})
    return str(path)


@pytest.fixture
def clip(tmp_path):
    return str(make_clip(tmp_path / "clip.mp4", 4))


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "dblr_fast", *arguments], capture_output=True, text=True)


def test_deblur_as_a_user_types_it(tmp_path, clip, model):
    done = run("deblur", clip, str(tmp_path / "out.mp4"), "--model", model)
    assert (done.returncode, done.stderr) == (0, "")
    assert "out.mp4: 4 frames of 64x48 in" in done.stdout and "frames/s" in done.stdout
    assert len(decoded(tmp_path / "out.mp4")) == 4


def test_every_option_reaches_the_run(tmp_path, monkeypatch):
    seen = {}

    def fake(source, target, **options):
        seen.update(options, source=str(source), target=str(target))
        from dblr_fast.video import Result

        return Result(1, 2, 3, 4.0, True, ("something was lost",), "cpu", "exact")

    monkeypatch.setattr("dblr_fast.video.deblur_video", fake)
    code = cli.main("deblur a.mp4 b.mkv --model m --backend torch --precision fast --tile 256 --codec ffv1 "
                    "--crf 12.5 --range full --fps 24 --device cpu --overwrite".split())
    assert code == 0 and seen.pop("progress") is not None
    assert seen == dict(source="a.mp4", target="b.mkv", model="m", backend="torch", precision="fast",
                        tile=256, codec="ffv1", crf=12.5, range="full", fps=24.0, device="cpu",
                        overwrite=True)
    cli.main(["deblur", "a.mp4", "b.mkv"])
    assert (seen["tile"], seen["overwrite"], seen["crf"], seen["codec"]) == ("auto", False, None, "libx264")
    cli.main(["deblur", "a.mp4", "b.mkv", "--tile", "off"])
    assert seen["tile"] == "off"


def test_warnings_go_to_stderr(tmp_path, monkeypatch, capsys):
    test_every_option_reaches_the_run(tmp_path, monkeypatch)
    assert "warning: something was lost" in capsys.readouterr().err


def test_help_and_version(capsys):
    for arguments in ([], ["--help"], ["deblur", "--help"], ["info", "--help"]):
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        assert left.value.code == 0
        assert "dblr-fast" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert dblr_fast.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("line", ["deblur", "deblur a.mp4", "nonsense", "deblur a b --tile some",
                                  "deblur a b --precision x", "deblur a b --mode x"])
def test_mistakes_in_typing_exit_with_2(line):
    with pytest.raises(SystemExit) as left:
        cli.main(line.split())
    assert left.value.code == 2


def test_refusals_are_one_sentence_and_exit_with_2(tmp_path, clip, model, capsys):
    (tmp_path / "text.mp4").write_text("no video")
    out = str(tmp_path / "out.mp4")
    for arguments, said in (
            ([str(tmp_path / "none.mp4"), out], "there is no file or folder"),
            ([str(tmp_path / "text.mp4"), out], "cannot be read as a video"),
            ([clip, clip, "--overwrite"], "is the input itself"),
            ([clip, out, "--model", "nobody"], "there is no model 'nobody'"),
            ([clip, out, "--model", model, "--backend", "abacus"], "abacus"),
            ([clip, out, "--model", model, "--tile", "0"], "tile"),
            ([clip, out, "--model", model, "--codec", "abacus"], "no video encoder")):
        assert cli.main(["deblur", *arguments]) == 2, arguments
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("dblr-fast: ") and said in lines[0], lines
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4", "models", "text.mp4"]


def test_a_checkpoint_of_another_shape(tmp_path, clip, model, capsys):
    from safetensors.torch import load_file, save_file

    state = load_file(model)
    save_file(state, model)  # the metadata is gone: taken for the paper's network
    assert cli.main(["deblur", clip, str(tmp_path / "out.mp4"), "--model", model]) == 2
    assert "should have shape (64, 16, 3, 3, 3), the file has (8, 16, 3, 3, 3)" in capsys.readouterr().err


def test_a_damaged_source_exits_with_3(tmp_path, model, capsys):
    source = make_clip(tmp_path / "a.mkv", 60, smooth=False)
    source.write_bytes(source.read_bytes()[:-source.stat().st_size // 2])
    assert cli.main(["deblur", str(source), str(tmp_path / "b.mkv"), "--model", model]) == 3
    captured = capsys.readouterr()
    assert "damaged or cut off" in captured.err and "frames of 64x48" in captured.out
    assert len(decoded(tmp_path / "b.mkv")) > 5


def test_failures_exit_with_1(tmp_path, clip, monkeypatch, capsys):
    for error in (RuntimeError("CUDA ran out of memory\nwith details"), MemoryError("no room"),
                  OSError(5, "Input/output error")):
        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr("dblr_fast.video.deblur_video", fail)
        assert cli.main(["deblur", clip, str(tmp_path / "out.mp4")]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_debug_shows_where_an_error_came_from(monkeypatch, tmp_path):
    monkeypatch.setenv("DBLR_FAST_DEBUG", "1")
    with pytest.raises(ValueError, match="there is no file"):
        cli.main(["deblur", str(tmp_path / "none.mp4"), "out.mp4"])


SLOW = """
import os, sys
sys.path.insert(0, sys.argv[1])
from clips import Passing
from dblr_fast import cli, restore

class Stuck(Passing):
    def __call__(self, batch):
        if self.calls == 3:
            print("stuck", flush=True)
            sys.stdin.read()
        return super().__call__(batch)

made = restore.Restorer.__init__
restore.Restorer.__init__ = lambda self, *_: made(self, Stuck())
sys.exit(cli.main(["deblur", sys.argv[2], sys.argv[3], "--overwrite"]))
"""


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("target", ["out.mp4", "out"])
def test_an_interrupt_leaves_the_old_output(tmp_path, number, code, target):
    source = make_clip(tmp_path / "clip.mp4", 20)
    old = tmp_path / target
    if target == "out":
        old.mkdir()
        old = old / "00000000.png"
    old.write_text("old")
    process = subprocess.Popen([sys.executable, "-c", SLOW, os.path.dirname(__file__), str(source),
                                str(tmp_path / target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True,
                               # A shell starts what runs in the background with interrupts ignored.
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert process.stdout.readline() == "stuck\n"
    assert len(leftovers(tmp_path)) == 1  # the output in the making
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert leftovers(tmp_path) == [] and old.read_text() == "old"


def test_info_has_all_it_should(capsys):
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    for word in ("dblr_fast", "Python", "torch", "threads", "cpu code", "cuda code", "backends", "models"):
        assert word in text
    for name in dblr_fast.backends():
        assert f"  {name}" in text


def test_info_comes_out_whatever_is_missing(monkeypatch, tmp_path):
    def broken(*_):
        raise ImportError("libfoo.so is not there\nand more")

    monkeypatch.setattr(info, "import_module", broken)
    monkeypatch.setattr(info, "_devices", broken)
    monkeypatch.setattr(dblr_fast.backends, "backends", broken)
    monkeypatch.setattr(dblr_fast.backends, "get", broken)
    (tmp_path / "odd.safetensors").write_text("no checkpoint")
    monkeypatch.setattr("dblr_fast.checkpoint.FOLDER", tmp_path)
    text = info.report()
    assert text.count("libfoo.so is not there") >= 4 and "odd: " in text


def test_info_lists_the_models(monkeypatch, model):
    monkeypatch.setattr("dblr_fast.checkpoint.FOLDER", __import__("pathlib").Path(model).parent)
    line = next(line for line in info.report().splitlines() if line.startswith("  m: "))
    assert "trained_on nothing" in line and "width 8" in line


def test_the_bar_is_for_terminals_alone(tmp_path, capfd):
    with progress.Progress() as bar:
        bar(1, 2)
    assert capfd.readouterr().err == ""
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal, progress.Progress(terminal) as bar:
        for i in range(5):
            bar(i + 1, 4)
        bar(6, None)
    shown = os.read(master, 65536).decode()
    os.close(master)
    assert "deblurring" in shown and "frames/s" in shown


LIGHT = """
import sys
import dblr_fast
heavy = {"av", "cv2", "tyro", "rich", "numpy.testing", "triton"} & set(sys.modules)
assert not heavy, heavy
dblr_fast.deblur, dblr_fast.deblur_video, dblr_fast.models
heavy = {"av", "cv2", "tyro", "rich"} & set(sys.modules)
assert not heavy, heavy
"""


def test_importing_loads_nothing_heavy():
    subprocess.run([sys.executable, "-c", LIGHT], check=True)


WITHOUT = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
import numpy, pathlib
sys.path.insert(0, sys.argv[2])
import torch, types
class Passing:
    backend, precision, device = "none", "exact", torch.device("cpu")
    model = types.SimpleNamespace(frames=5, metadata={})
    def __call__(self, batch):
        return batch[:, 2:3]
import dblr_fast
from dblr_fast import cli
assert dblr_fast.deblur(numpy.zeros((2, 4, 4), numpy.uint8), model=Passing()).shape == (2, 4, 4)
if "cv2" not in sys.argv[1]:
    dblr_fast.deblur_video(sys.argv[3], sys.argv[4], model=Passing())
try:
    dblr_fast.deblur_video(sys.argv[3], sys.argv[4] + ".mp4", model=Passing())
except ValueError as error:
    print(error)
from dblr_fast.info import report
report()
sys.exit(cli.main(["info"]))
"""


@pytest.mark.parametrize("missing, said, code", [
    ("av", "video files need PyAV", 0), ("av,tyro,rich", "the command line needs tyro", 2),
    ("cv2", "pictures need OpenCV", 0), ("rich", "", 0)])
def test_what_is_missing_is_said_when_it_is_needed(tmp_path, missing, said, code):
    import cv2
    import numpy

    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), numpy.zeros((4, 4), numpy.uint8))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, missing, os.path.dirname(__file__), str(tmp_path / "in"),
         str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr and "Traceback" not in done.stderr
