"""Training as a user has it: real footage, the command line, a kill at any moment, and the weights put to use."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from clips import decoded, make_clip
from training_cases import losses, table

import dblr_fast
from dblr_fast import cli
from dblr_fast.checkpoint import read_metadata
from dblr_fast.training import configuration
from dblr_fast.training import state as states
from dblr_fast.training.exporting import model_of

cv2 = pytest.importorskip("cv2", reason="training data needs OpenCV: pip install opencv-python-headless")

STEPS, EVERY, KILLED_AFTER = 56, 7, 12
SMALL = (f"--steps {STEPS} --checkpoint.every {EVERY} --log.every 1 --batch 4 --model.width 8 --model.blocks 1 "
         "--data.crop 32 --data.validation-size 48 --validation.every 28 --optimiser.lr 4e-3 --schedule.least 1e-4 "
         "--ema 0.9 --data.blur.length 3 8 --data.blur.sharp-share 0 --data.blur.noise 0 --data.blur.coding-share 0 "
         "--log.tensorboard false --device cpu --data.cache off").split()


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    """A folder with two clips, as folders of pictures, of shapes that move before a pattern."""
    folder = tmp_path_factory.mktemp("footage")
    for clip in range(2):
        rng = np.random.default_rng(clip)
        (folder / f"clip{clip}").mkdir()
        wall = cv2.resize(rng.integers(30, 220, (20, 26, 3), np.uint8), (160, 120), interpolation=cv2.INTER_NEAREST)
        discs = [(rng.uniform(10, 110, 2), rng.uniform(-2, 2, 2), int(rng.integers(5, 20)), rng.integers(0, 255, 3))
                 for _ in range(12)]
        for number in range(10):
            frame = wall.copy()
            for at, speed, radius, colour in discs:
                centre = tuple(int(v) for v in at + number * speed)
                cv2.circle(frame, centre, radius, tuple(int(c) for c in colour), -1, cv2.LINE_AA)
            cv2.imwrite(str(folder / f"clip{clip}" / f"{number:03d}.png"), frame)
    return folder


@pytest.fixture(scope="module")
def runs(footage, tmp_path_factory):
    """The same training twice: "whole" without a break, "broken" killed with -9 somewhere after a step, then ended by
    Ctrl-C, then finished. The folder of both, and where each part ended."""
    folder = tmp_path_factory.mktemp("runs")
    before = torch.get_num_threads()
    torch.set_num_threads(1)

    def line(name, *more):
        return ["train", "tiny.yaml", "--data.paths", str(footage), "--folder", str(folder / name), *SMALL, *more]

    assert cli.main(line("whole", "--data.workers", "0")) == 0
    ended = {}
    for name, until, number in (("killed", KILLED_AFTER, signal.SIGKILL), ("stopped", 24, signal.SIGINT)):
        process = subprocess.Popen([sys.executable, "-m", "dblr_fast", *line("broken", "--resume")], text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                                   env=os.environ | {"OMP_NUM_THREADS": "1"})
        for text in process.stdout:
            if text.startswith(("going on", "starting")):
                ended[name + " from"] = int(text.split("step ")[1].split()[0])
            if text.startswith(f"step {until}/"):
                break
        if number == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, number)  # as a terminal does: the workers too
        _, said = process.communicate(timeout=120)
        ended[name] = process.returncode, said
    assert cli.main(line("broken", "--resume", "--data.workers", "0")) == 0
    torch.set_num_threads(before)
    return folder, ended


def test_a_kill_loses_at_most_the_last_interval(runs):
    _, ended = runs
    assert ended["killed"][0] == -signal.SIGKILL and ended["killed from"] == 0
    assert ended["stopped from"] > KILLED_AFTER - EVERY and ended["stopped from"] % EVERY == 0


def test_ctrl_c_saves_and_exits(runs):
    folder, ended = runs
    code, said = ended["stopped"]
    assert code == 130 and "by SIGINT" in said and "Traceback" not in said, said
    assert len(said.splitlines()) == 1


def test_a_broken_run_has_the_losses_of_a_whole_one(runs):
    """Bit by bit, whatever broke it, and whichever processes prepared the samples."""
    folder, _ = runs
    assert len(losses(folder / "whole")) == STEPS
    assert losses(folder / "broken") == losses(folder / "whole")
    assert table(folder / "broken", "validation.csv") == table(folder / "whole", "validation.csv")
    whole, broken = (model_of(folder / name).state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_the_loss_falls_and_psnr_rises_above_the_input(runs):
    folder, _ = runs
    rows = table(folder / "whole")
    quarter = STEPS // 4
    first, last = (sum(r["content"] for r in part) / sum(r["input"] for r in part)
                   for part in (rows[:quarter], rows[-quarter:]))
    assert last < 0.95 * first and last < 1, (first, last)
    end = table(folder / "whole", "validation.csv")[-1]
    assert end["step"] == STEPS and end["psnr_y"] > end["psnr_y_input"] + 0.3, end
    assert end["psnr_rgb"] > end["psnr_rgb_input"] and end["ssim_y"] > end["ssim_y_input"]


@pytest.mark.parametrize("weights", ["ema", "model", "best"])
def test_exported_weights_deblur(runs, tmp_path, capsys, weights):
    folder, _ = runs
    target = tmp_path / "mine.safetensors"
    assert cli.main(["export", str(folder / "whole"), str(target), "--weights", weights]) == 0
    metadata = read_metadata(target)
    assert (metadata["width"], metadata["blocks"], metadata["luma_matrix"]) == ("8", "1", "bt601")
    assert metadata["trained_on"].startswith("footage") and str(folder) not in str(metadata)
    assert f'"steps": {STEPS}' in metadata["training"] and "psnr_y" in metadata["scores"]
    state = states.load(folder / "whole")["learning"]
    held = state["average"] if weights == "ema" else state["generator"]["network"]
    if weights != "best":
        assert torch.equal(dblr_fast.load_model(target).state_dict()["conv33.weight"], held["conv33.weight"])
    if weights == "ema":
        clip = make_clip(tmp_path / "clip.mp4", 3)
        assert cli.main(["deblur", str(clip), str(tmp_path / "out.mp4"), "--model", str(target)]) == 0
        assert len(decoded(tmp_path / "out.mp4")) == 3
    assert cli.main(["export", str(folder / "whole"), str(target)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_exports_that_cannot_be(runs, tmp_path, capsys):
    for arguments, said in (([str(tmp_path), "a.safetensors"], "there is no checkpoint in"),
                            ([str(runs[0] / "whole"), "a.pt"], "written as a .safetensors file"),
                            ([str(runs[0] / "whole"), str(tmp_path / "no" / "a.safetensors")], "does not exist")):
        assert cli.main(["export", *arguments]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and said in lines[0], lines


def test_bad_footage_is_one_sentence(footage, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "corrupt" / "clip").mkdir(parents=True)
    for number in range(6):
        (tmp_path / "corrupt" / "clip" / f"{number}.png").write_text("no picture")
    for path, more in ((tmp_path / "none", []), (tmp_path / "empty", []), (tmp_path / "corrupt", []),
                       (footage, ["--data.layouts", "gopro"]), (footage, ["--data.crop", "500"])):
        code = cli.main(["train", "tiny.yaml", "--data.paths", str(path), "--folder", str(tmp_path / "run"), *SMALL,
                         "--data.workers", "0", *more])
        lines = capsys.readouterr().err.splitlines()
        assert code == 2 and len(lines) == 1 and lines[0].startswith("dblr-fast: "), lines
    assert not (tmp_path / "run").exists()


def test_tiny_is_for_a_cpu():
    config = configuration.load("tiny.yaml")
    assert config.model.width * config.model.blocks <= 64 and config.steps <= 1000
