"""Checkpoints: complete, whole at any moment, and gone on from bit by bit; others are refused."""

import os
import signal

import pytest
import torch
from training_cases import footage, losses, one_thread, same_tree, small, table  # noqa: F401  (two are fixtures)

from dblr_fast import cli, commands
from dblr_fast.errors import Refusal
from dblr_fast.training import configuration, train
from dblr_fast.training import state as states


def interrupt_after(footage, batches, number):  # noqa: F811
    """Sends this process a signal when so many batches have been asked for."""
    def interrupting(*arguments, **options):
        for number_of, batch in enumerate(type(footage).batches(footage, *arguments, **options), 1):
            if number_of == batches:
                os.kill(os.getpid(), number)
            yield batch

    return interrupting


@pytest.mark.parametrize("alpha", [0.0, 2e-4])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_resumed_losses_are_the_same_bit_by_bit(footage, monkeypatch, tmp_path, capsys, alpha, number):  # noqa: F811
    """A signal between checkpoints and lines: the run saves, exits, and goes on as if nothing had been."""
    changes = dict(steps=9, loss__alpha=alpha, log__every=2, checkpoint__every=4, validation__every=4)
    train(small(tmp_path / "whole", **changes))
    asked = list(footage.asked)
    footage.asked.clear()
    with monkeypatch.context() as patched:
        patched.setattr("dblr_fast.data.batches", interrupt_after(footage, 5, number))
        patched.setattr(commands, "parse", lambda _: small(tmp_path / "cut", **changes))
        before = signal.getsignal(signal.SIGTERM)
        assert cli.main(["train", "it.yaml"]) == 128 + number
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"stopped after step 5 by {number.name}" in said and "--resume" in said
    result = train(small(tmp_path / "cut", resume=True, **changes))
    assert result.step == 9 and footage.asked[:9] == asked[:9]
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert table(tmp_path / "cut", "validation.csv") == table(tmp_path / "whole", "validation.csv")
    whole, cut = (states.load(tmp_path / name) for name in ("whole", "cut"))
    assert whole["position"] == cut["position"] == 18
    assert same_tree(whole["learning"], cut["learning"]) and same_tree(whole["random"], cut["random"])


def test_a_checkpoint_is_complete(footage, tmp_path):  # noqa: F811
    train(small(tmp_path / "run", loss__alpha=1e-4, steps=4))
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert (state["step"], state["position"], len(state["random"])) == (4, 8, 1)
    for part in ("generator", "critic"):
        assert set(state["learning"][part]) == {"network", "optimiser", "schedule", "scaler"}
        assert state["learning"][part]["optimiser"]["state"]
    assert state["learning"]["average"].keys() == state["learning"]["generator"]["network"].keys()
    assert set(state["random"][0]) == {"torch", "python", "numpy", "cuda"}
    assert "alpha: 0.0001" in state["configuration"] and state["scores"]["psnr_y"] > 0


@pytest.mark.parametrize("changes, said", [
    ({"optimiser__lr": 5e-4}, "was written with optimiser.lr 0.001 and the configuration says 0.0005"),
    ({"model__width": 16}, "was written with model.width 8"), ({"loss__alpha": 1e-4}, "loss.alpha 0 and"),
    ({"data__crop": 32}, "data.crop 24"), ({"data__paths": ("other",)}, "data.paths"), ({"seed": 4}, "seed 3"),
    ({"batch": 4}, "batch 2"), ({"data__held_out": 2}, "data.held_out 1"),
    ({"data__validation_paths": ("other",)}, "data.validation_paths nothing and the configuration says .'other'.")])
def test_a_checkpoint_of_another_configuration_is_refused(footage, tmp_path, changes, said):  # noqa: F811
    run = tmp_path.parent / "refused"
    if not run.exists():
        train(small(run, steps=1))
    with pytest.raises(Refusal, match=said):
        train(small(run, resume=True, **changes))


def test_a_setting_that_an_older_checkpoint_lacks_had_its_default(tmp_path):
    saved = "\n".join(line for line in configuration.dump(small("run")).splitlines() if "betas" not in line)
    assert configuration.first_difference(saved, small("run")) is None
    changed = small("run", optimiser__betas=(0.5, 0.9))
    assert configuration.first_difference(saved, changed) == ("optimiser.betas", [0.9, 0.999], [0.5, 0.9])


def test_what_may_change_may(footage, tmp_path):  # noqa: F811
    train(small(tmp_path / "run", steps=2))
    result = train(small(tmp_path / "run", resume=True, steps=4, log__every=2, validation__every=0,
                         data__cache="off", checkpoint__every=3))
    assert result.step == 4 and [row["step"] for row in table(tmp_path / "run")] == [1, 2, 4]


def test_a_folder_is_not_overwritten(footage, tmp_path, monkeypatch, capsys):  # noqa: F811
    train(small(tmp_path / "run", steps=1))
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(commands, "parse", lambda _: small(tmp_path / "run", steps=2))
    assert cli.main(["train", "it.yaml"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "holds a run already; go on with it by --resume" in said[0]
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("damage", [lambda data: data[:len(data) // 2], lambda data: b"", lambda data: b"text"])
def test_a_damaged_checkpoint_is_refused(footage, tmp_path, damage):  # noqa: F811
    train(small(tmp_path / "run", steps=1, validation__every=0))
    path = tmp_path / "run" / "checkpoint.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Refusal, match="checkpoint.pt cannot be read"):
        train(small(tmp_path / "run", resume=True, steps=2, validation__every=0))


def test_a_checkpoint_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({"format": 1, "step": Trap()}, tmp_path / "checkpoint.pt")
    with pytest.raises(Refusal, match="cannot be read"):
        states.load(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(footage, tmp_path, monkeypatch):  # noqa: F811
    train(small(tmp_path / "run", steps=2))
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()

    def full(thing, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        train(small(tmp_path / "run", steps=4, resume=True))
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    assert not list((tmp_path / "run").glob(".checkpoint*"))


def test_leftovers_of_a_kill_are_removed(footage, tmp_path):  # noqa: F811
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".checkpoint.abc123.pt").write_bytes(b"half")
    train(small(tmp_path / "run", steps=1, validation__every=0))
    assert not list((tmp_path / "run").glob(".checkpoint*"))
