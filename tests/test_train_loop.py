"""The loop: what it learns, what it writes, what it starts from. Samples are made of numbers here."""

import copy
from itertools import count

import pytest
import torch
from training_cases import footage, learning, one_thread, same_tree, small, table  # noqa: F401  (two are fixtures)

import dblr_fast
from dblr_fast import commands
from dblr_fast.checkpoint import read_metadata
from dblr_fast.errors import Refusal
from dblr_fast.training import configuration, train
from dblr_fast.training import state as states
from dblr_fast.training.losses import adversarial_loss
from dblr_fast.training.ranks import Ranks
from dblr_fast.training.step import Step
from dblr_fast.training.validation import validate


def test_it_learns(footage, tmp_path):  # noqa: F811
    result = train(learning(tmp_path / "run"))
    rows = table(tmp_path / "run")
    assert [row["step"] for row in rows] == [20, 40, 60, 80, 100] and result.finished
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]
    assert result.scores["psnr_y"] > result.scores["psnr_y_input"] + 1
    assert result.scores["ssim_y"] > result.scores["ssim_y_input"] + 0.03
    assert result.scores["psnr_rgb"] > result.scores["psnr_rgb_input"] + 1
    assert footage.asked[:2] == [[0, 1, 2, 3], [4, 5, 6, 7]] and footage.asked[99] == [396, 397, 398, 399]


def test_the_folder_of_a_run(footage, tmp_path):  # noqa: F811
    import cv2
    import yaml

    config = small(tmp_path / "run", log__tensorboard=True)
    train(config)
    names = sorted(p.name for p in (tmp_path / "run").iterdir())
    assert names == ["best.safetensors", "checkpoint.pt", "config.yaml", "pictures", "tensorboard", "train.csv",
                     "validation.csv", "versions.yaml"]
    assert configuration.load(str(tmp_path / "run" / "config.yaml")) == config
    entry, = yaml.safe_load((tmp_path / "run" / "versions.yaml").read_text())
    assert entry["torch"] == torch.__version__ and entry["dblr_fast"] == dblr_fast.__version__ and entry["commit"]
    assert [row["step"] for row in table(tmp_path / "run", "validation.csv")] == [0, 3, 6]
    shown = sorted((tmp_path / "run" / "pictures").iterdir())
    assert [p.name for p in shown] == [f"{step:08d}_00_window_0.png" for step in (0, 3, 6)] + ["first_batch.png"]
    assert cv2.imread(str(shown[0])).shape == (24, 72, 3)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/lr", "validation/psnr_y"} <= set(events.Tags()["scalars"])
    assert len(events.Tags()["images"]) == 1
    assert [round(e.value, 6) for e in events.Scalars("train/loss")] == [
        round(row["loss"], 6) for row in table(tmp_path / "run")]


def test_alpha_0_is_dblrnet_exactly(footage, tmp_path):  # noqa: F811
    """The loop's weights are those of five lines of plain training, bit by bit; no discriminator is built."""
    config = small(tmp_path / "run", steps=3, optimiser__clip=0.0, schedule__kind="constant", validation__every=0)
    train(config)
    torch.manual_seed(config.seed)
    model = dblr_fast.DBLRNet(frames=3, width=8, blocks=1, init="identity").train()
    model.to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    samples = footage.training_set(config.data, 3, config.seed)
    for step in range(3):
        pair = [samples[2 * step + i] for i in range(2)]
        blurred, sharp = (torch.stack([s[key] for s in pair]) for key in ("blurred", "sharp"))
        (model(blurred) - sharp).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    state = states.load(tmp_path / "run")
    assert state["learning"]["critic"] is None
    assert same_tree(state["learning"]["generator"]["network"], dict(model.state_dict()))


def dblrgan_gains(footage, tmp_path, seed=3):  # noqa: F811
    """From a DBLRNet, 200 steps against a discriminator that can tell its frames from sharp ones (it learns alone
    until it can): the adversarial loss of frames that neither was trained on, before and after, and PSNR likewise."""
    net = train(learning(tmp_path / "net", steps=30))
    config = learning(tmp_path / "gan", seed=seed, loss__alpha=5e-3, model__weights=str(tmp_path / "net"),
                      discriminator__lr=1e-3)
    step, windows = Step(config, Ranks()), footage.validation_set(config.data, 3)
    feed = footage.batches(footage.training_set(config.data, 3, seed), (range(4 * i, 4 * i + 4) for i in count()))
    start, gap, done = copy.deepcopy(step.model), 0.0, 0
    step.generator.schedule.lr = 0.0
    while gap < 0.3:
        values, _ = step(next(feed), done)
        gap, done = 0.8 * gap + 0.2 * (values["d_real"] - values["d_restored"]), done + 1
        assert done < 400, "the discriminator does not learn"
    step.generator.schedule.lr, step.critic.schedule.lr = 2e-5, 1e-6
    for number in range(done, done + 200):
        step(next(feed), number)
    samples = footage.training_set(config.data, 3, seed + 50)
    blurred = torch.stack([samples[i]["blurred"] for i in range(16)])
    with torch.no_grad():  # in training mode: by the batch's own statistics, as in training
        before, after = (float(adversarial_loss(step.critic.network(model.train()(blurred))))
                         for model in (start, step.model))
    return before, after, net.scores["psnr_y"], validate(step.average.model, windows, Ranks())[0]["psnr_y"]


def test_dblrgan_lowers_the_adversarial_loss_and_keeps_psnr(footage, tmp_path):  # noqa: F811
    before, after, psnr_before, psnr_after = dblrgan_gains(footage, tmp_path)
    assert after < before, (before, after)
    assert psnr_after > psnr_before - 0.2, (psnr_before, psnr_after)


@pytest.mark.parametrize("name", configuration.shipped())
def test_each_configuration_runs_20_steps(footage, tmp_path, name):  # noqa: F811
    config = commands.parse([
        "train", name, "--folder", str(tmp_path / "run"), *"--data.paths x --steps 20 --model.width 8 --model.blocks 1 "
        "--data.crop 24 --discriminator.width 4 --discriminator.hidden 16 --discriminator.pool 1 --device cpu "
        "--validation.every 10 --data.validation-windows 2 --log.every 5 --log.tensorboard false".split()])
    if config.model.weights:
        start = dblr_fast.DBLRNet(width=8, blocks=1, init="identity")
        dblr_fast.save_model(start, tmp_path / "net.safetensors")
        config.model.weights = str(tmp_path / "net.safetensors")
    result = train(config)
    assert result.step == 20 and len(table(tmp_path / "run")) == 4
    assert dblr_fast.load_model(tmp_path / "run" / "best.safetensors").variant == config.model.variant


def test_training_ends_when_psnr_no_longer_rises(footage, tmp_path, capsys):  # noqa: F811
    config = small(tmp_path / "run", steps=50, optimiser__lr=0.5, optimiser__clip=0.0, validation__every=2,
                   validation__patience=2, log__every=50)
    result = train(config)
    assert result.step == 4 and result.finished
    assert "ending at step 4: the PSNR of Y has not risen above" in capsys.readouterr().out
    assert read_metadata(tmp_path / "run" / "best.safetensors")["training"].count('"steps": 0')
    again = train(small(tmp_path / "run", steps=50, optimiser__lr=0.5, optimiser__clip=0.0, validation__every=2,
                        validation__patience=2, log__every=50, resume=True))
    assert again.step == 4 and again.finished  # it knows that it had ended


def test_weights_to_start_from_must_fit(footage, tmp_path):  # noqa: F811
    path = tmp_path / "net.safetensors"
    dblr_fast.save_model(dblr_fast.DBLRNet(frames=3, width=4, blocks=1), path)
    with pytest.raises(Refusal, match="has width 4 and the configuration says 8; set model.width to 4"):
        train(small(tmp_path / "run", model__weights=str(path)))
    with pytest.raises(Refusal, match="there is no model file"):
        train(small(tmp_path / "run", model__weights="none.safetensors"))
    with pytest.raises(Refusal, match="there is no checkpoint in"):
        train(small(tmp_path / "run", model__weights=str(tmp_path)))
    dblr_fast.save_model(dblr_fast.DBLRNet(frames=3, width=8, blocks=1), path, {"luma_matrix": "bt709"})
    with pytest.raises(Refusal, match="luma_matrix bt709"):
        train(small(tmp_path / "run", model__weights=str(path)))
    assert not (tmp_path / "run").exists()  # a refusal leaves nothing


def test_bfloat16_and_other_optimisers_train(footage, tmp_path):  # noqa: F811
    for number, changes in enumerate((dict(precision__autocast="bf16"), dict(optimiser__name="adamw"),
                                      dict(optimiser__name="sgd", precision__channels_last=False),
                                      dict(precision__dtype="float64"), dict(loss__generator="non_saturating",
                                                                             loss__alpha=1e-3))):
        train(small(tmp_path / str(number), steps=2, validation__every=0, **changes))
        rows = table(tmp_path / str(number))
        assert len(rows) == 2 and all(0 < row["content"] < 0.1 for row in rows)


def test_devices_that_are_not_there(footage, tmp_path):  # noqa: F811
    for device, said in (("cuda:64", "asks for GPU 64"), ("tpu", "device must be auto, cpu, cuda"),
                         ("mps", "device must be auto, cpu, cuda")):
        with pytest.raises(Refusal, match=said):
            train(small(tmp_path / "run", device=device))
    with pytest.raises(Refusal, match="fp16"):
        train(small(tmp_path / "run", precision__autocast="fp16"))
