"""Parts of training by themselves: the fall of the learning rate, the average of the weights, scores, tables."""

import math
import sys

import pytest
import torch
from training_cases import picture, small

import dblr_fast
from dblr_fast.errors import Refusal
from dblr_fast.evaluation import psnr, ssim
from dblr_fast.training import journal
from dblr_fast.training.config import ScheduleConfig
from dblr_fast.training.optimisation import Average, Schedule
from dblr_fast.training.ranks import Ranks
from dblr_fast.training.validation import NAMES, validate


def test_plateau_is_the_papers_rule():
    """1e-4 while the loss falls, 1e-5 when it no longer does, and never less."""
    schedule = Schedule(ScheduleConfig(window=10, patience=2), 1e-4, 1000)
    rates = []
    for step in range(400):
        rates.append(schedule.rate(step))
        schedule.observe(1 / (1 + min(step, 200)))
    assert rates[:230] == [1e-4] * 230 and all(rate == pytest.approx(1e-5) for rate in rates[240:])
    fall = next(i for i, rate in enumerate(rates) if rate < 1e-4)
    assert 230 <= fall <= 240  # after three windows that were no better


def test_a_negative_loss_can_fall_too():
    schedule = Schedule(ScheduleConfig(window=1, patience=0), 1e-4, 10)
    for step in range(5):
        schedule.observe(-1.0 - step)
    assert schedule.rate(5) == 1e-4
    schedule.observe(-5.0)
    assert schedule.rate(6) == pytest.approx(1e-5)


def test_other_schedules():
    cosine = Schedule(ScheduleConfig(kind="cosine", least=1e-5, warmup=10), 1e-3, 110)
    rates = [cosine.rate(step) for step in range(111)]
    assert rates[0] == pytest.approx(1e-4) and rates[9] == rates[10] == 1e-3
    assert rates[60] == pytest.approx((1e-3 + 1e-5) / 2) and rates[110] == pytest.approx(1e-5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert {Schedule(ScheduleConfig(kind="constant"), 1e-6, 9).rate(step) for step in range(9)} == {1e-6}


def test_a_schedule_goes_on_where_it_was():
    config = ScheduleConfig(window=3, patience=1)
    a, b = Schedule(config, 1e-4, 100), Schedule(config, 1e-4, 100)
    for _ in range(7):
        a.observe(1.0)
    b.load_state_dict(a.state_dict())
    for step in range(20):
        assert a.rate(step) == b.rate(step)
        a.observe(1.0)
        b.observe(1.0)
    assert a.rate(0) == pytest.approx(1e-5)


def test_average_of_the_weights():
    model = dblr_fast.DBLRNet(width=4, blocks=1)
    average = Average(model, 0.5)
    want = model.conv1.weight.detach().double()
    for step in range(1, 9):
        with torch.no_grad():
            model.conv1.weight.add_(1.0)
            model.conv31.bn.running_var.add_(1.0)
            model.conv31.bn.num_batches_tracked.add_(1)
        average.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        want = want * decay + model.conv1.weight.detach().double() * (1 - decay)
    assert torch.allclose(average.model.conv1.weight.double(), want)
    assert 1 < average.model.conv31.bn.running_var[0] < 9
    assert int(average.model.conv31.bn.num_batches_tracked) == 8
    assert not average.model.training and not any(p.requires_grad for p in average.model.parameters())
    plain = Average(model, 0.0)
    with torch.no_grad():
        model.conv1.weight.mul_(2.0)
    plain.update(model, 1)
    assert torch.equal(plain.model.conv1.weight, model.conv1.weight)


def window(name="a", side=24):
    sharp = torch.from_numpy(picture(5, side))
    colours = torch.stack([sharp, sharp * 0.5, 1 - sharp])
    blurred = torch.stack([colours.roll(s, 2) for s in (-1, 0, 1)]).mean(0)
    luma = (blurred * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)
    return {"name": name, "blurred": luma.expand(3, -1, -1), "blurred_rgb": blurred, "sharp_rgb": colours}


def test_scores_of_a_network_that_changes_nothing():
    """The identity scores as its input does: PSNR and SSIM of Y and of R, G, B at bytes."""
    model = dblr_fast.DBLRNet(frames=3, width=8, blocks=1, init="identity").eval()
    scores, pictures = validate(model, [window(), window("b")], Ranks(), pictures=1)
    assert tuple(scores) == NAMES and len(pictures) == 1 and pictures[0][0] == "a"
    before, sharp = ((window()[key] * 255).round() / 255 for key in ("blurred_rgb", "sharp_rgb"))
    assert scores["psnr_rgb_input"] == pytest.approx(10 * math.log10(1 / float((before - sharp).square().mean())), 1e-6)
    assert scores["ssim_rgb_input"] == pytest.approx(float(ssim(before, sharp).mean()))
    luma = [(picture * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0) for picture in (before, sharp)]
    assert scores["psnr_y_input"] == pytest.approx(float(psnr(*luma)), 1e-5)
    for name in ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb"):
        assert scores[name] == pytest.approx(scores[f"{name}_input"], 1e-4)
    assert all(part.dtype == torch.uint8 and part.shape == (3, 24, 24) for part in pictures[0][1:])


def test_a_perfect_network_scores_100_db():
    perfect = window() | {"blurred_rgb": window()["sharp_rgb"]}
    model = dblr_fast.DBLRNet(frames=3, width=8, blocks=1, init="identity").eval()
    scores, _ = validate(model, [perfect], Ranks())
    assert scores["psnr_y"] == scores["psnr_rgb"] == 100 and scores["ssim_y"] == pytest.approx(1)


def test_windows_too_small_for_ssim():
    model = dblr_fast.DBLRNet(frames=3, width=8, blocks=1).eval()
    with pytest.raises(Refusal, match="at least 11x11 pixels; those of a are 8x8"):
        validate(model, [window(side=8)], Ranks())


def test_a_table_forgets_what_came_after_a_checkpoint(tmp_path):
    path = tmp_path / "t.csv"
    first = journal.Table(path, ["step", "loss"], 0)
    for step in range(1, 6):
        first.add({"step": step, "loss": 1 / (step + 2)})
    first.close()
    path.write_text(path.read_text() + "6,0.1")  # a row that a crash cut off
    again = journal.Table(path, ["step", "loss"], 3)
    again.add({"step": 4, "loss": 0.25})
    again.close()
    assert path.read_text().splitlines() == ["step,loss", *(f"{n},{1 / (n + 2)!r}" for n in (1, 2, 3)), "4,0.25"]


def test_tensorboard_that_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(Refusal, match=r"tensorboard, which is not installed; pip install 'dblr_fast\[train\]'"):
        journal.Journal(tmp_path, ["loss"], NAMES, 0, 1, tensorboard=True)


def test_the_bar_is_for_terminals(tmp_path, monkeypatch):
    import io

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with journal.reading("footage") as progress:
        progress(1, 2)
    assert "reading footage" in sys.stderr.getvalue()
    made = journal.Journal(tmp_path, ["loss"], NAMES, 0, 10, tensorboard=False)
    made.line(5, {"loss": 0.5}, 1e-4, 12.0)
    made.progress(5)
    made.close()
    assert "training" in sys.stderr.getvalue() and "images/s" in sys.stderr.getvalue()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with journal.reading("footage") as progress:
        assert progress is None


def test_small_is_valid():
    small("run").check()
