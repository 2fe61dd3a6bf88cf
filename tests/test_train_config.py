"""Configurations: dataclasses, YAML and the command line are one thing, and mistakes are said in one sentence."""

import dataclasses
import subprocess
import sys

import pytest
from training_cases import small

from dblr_fast import cli, commands
from dblr_fast.errors import Refusal
from dblr_fast.training import configuration
from dblr_fast.training.config import MAY_CHANGE, WINDOWS, TrainConfig

SHIPPED = ("dblrgan.yaml", "dblrnet.yaml", "dblrnet_multi.yaml", "dblrnet_single.yaml", "tiny.yaml")


def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_the_shipped_ones_are_all_there():
    assert tuple(configuration.shipped()) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_are_valid_and_survive_yaml(name, tmp_path):
    config = configuration.load(name)
    config.data.paths = ("some", "where")
    config.check()
    assert configuration.load(written(tmp_path, configuration.dump(config))) == config
    assert configuration.load(name.removesuffix(".yaml")).model == config.model


def test_they_are_the_papers():
    net, gan = configuration.load("dblrnet.yaml"), configuration.load("dblrgan.yaml")
    assert (net.batch, net.data.crop, net.data.flips, net.model.init) == (4, 128, True, "paper")
    assert (net.optimiser.name, net.optimiser.lr, net.loss.alpha) == ("adam", 1e-4, 0)
    assert (net.schedule.kind, net.schedule.factor, net.schedule.least) == ("plateau", 0.1, 1e-5)
    assert (net.model.variant, net.model.frames, net.model.width, net.model.blocks) == ("3d", 5, 64, 14)
    assert (gan.batch, gan.data.crop, gan.loss.alpha, gan.loss.generator) == (4, 128, 2e-4, "saturating")
    assert (gan.optimiser.lr, gan.discriminator.lr, gan.schedule.kind) == (1e-5, 1e-5, "constant")
    assert gan.model.weights and gan.validation.every and gan.validation.patience
    assert (gan.discriminator.width, gan.discriminator.hidden) == (64, 4096)
    for name, variant, frames in (("dblrnet_multi.yaml", "multi", 5), ("dblrnet_single.yaml", "single", 1)):
        other = configuration.load(name)
        assert (other.model.variant, other.model.frames) == (variant, frames)
        assert (other.optimiser, other.schedule, other.data) == (net.optimiser, net.schedule, net.data)


def test_yaml_as_people_write_it(tmp_path):
    config = configuration.load(written(tmp_path, """
data: {paths: [a, b], cache: off, blur: {length: [0, 12]}}
optimiser: {lr: 1e-4, betas: [0.5, 0.999]}
precision: {autocast: off}
schedule: {least: 0}
"""))
    assert (config.data.paths, config.data.cache, config.data.blur.length) == (("a", "b"), "off", (0.0, 12.0))
    assert (config.optimiser.lr, config.optimiser.betas) == (1e-4, (0.5, 0.999))
    assert config.precision.autocast == "off" and isinstance(config.schedule.least, float)
    assert configuration.load(written(tmp_path, "")) == TrainConfig()


@pytest.mark.parametrize("text, said", [
    ("stepz: 3", "there is no setting stepz; those of this section are folder"),
    ("model: {widht: 3}", "there is no setting model.widht"),
    ("steps: many", "steps must be a whole number; got 'many'"),
    ("steps: 1.5", "steps must be a whole number"),
    ("steps: true", "steps must be a whole number"),
    ("optimiser: {lr: fast}", "optimiser.lr must be a number; got 'fast'"),
    ("optimiser: {betas: [0.9]}", "optimiser.betas must be a list of 2 values"),
    ("optimiser: {name: adagrad}", "optimiser.name must be one of adam, adamw, sgd"),
    ("data: {flips: 1}", "data.flips must be true or false"),
    ("data: {paths: footage}", "data.paths must be a list"),
    ("data: {paths: [3]}", "data.paths[0] must be text"),
    ("data: {blur: {subframes: [1.5, 3]}}", "data.blur.subframes[0] must be a whole number"),
    ("model: 3", "model must be a mapping"),
    ("- a\n- b", "the file must be a mapping"),
    ("a: [", "cannot be read as YAML"),
    ("folder: 3", "folder must be text"),
])
def test_mistakes_in_yaml_are_named(tmp_path, capsys, text, said):
    path = written(tmp_path, text)
    assert cli.main(["train", path]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0] and path in lines[0], lines


@pytest.mark.parametrize("changes, said", [
    ({"loss__alpha": 0.2}, "loss.alpha must be from 0 to 0.1"), ({"loss__alpha": -1e-9}, "loss.alpha"),
    ({"loss__alpha": float("nan")}, "loss.alpha"), ({"model__frames": 4}, "model.frames must be one of 3, 5, 7, 9, 11"),
    ({"model__frames": 13}, "model.frames"), ({"model__variant": "single"}, "model.frames must be 1"),
    ({"model__blocks": 0}, "model.blocks"), ({"steps": 0}, "steps"), ({"batch": 0}, "batch"), ({"ema": 1.0}, "ema"),
    ({"optimiser__lr": 0.0}, "optimiser.lr"), ({"optimiser__betas": (0.9, 1.0)}, "optimiser.betas"),
    ({"optimiser__clip": -1.0}, "optimiser.clip"), ({"schedule__factor": 0.0}, "schedule.factor"),
    ({"schedule__window": 0}, "schedule.window"), ({"checkpoint__every": 0}, "checkpoint.every"),
    ({"log__every": 0}, "log.every"), ({"folder": " "}, "folder"), ({"discriminator__width": 0}, "discriminator.width"),
    ({"validation__every": 0, "validation__patience": 2}, "validation.every"), ({"data__paths": ()}, "data.paths"),
    ({"data__crop": 15, "loss__alpha": 1e-4}, "data.crop must be at least 16"), ({"seed": -1}, "seed"),
])
def test_values_out_of_range_are_named(changes, said):
    with pytest.raises(Refusal, match=said):
        small("run", **changes).check()


def test_every_window_and_alpha_of_the_paper_is_fine():
    for frames in WINDOWS:
        for alpha in (0.0, 2e-4, 0.1):
            small("run", model__frames=frames, loss__alpha=alpha).check()
    small("run", model__frames=1, model__variant="single").check()


def test_the_command_line_changes_the_file():
    config = commands.parse("train dblrnet.yaml --data.paths a b --data.flips false --optimiser.lr 1e-3 --resume "
                            "--folder runs/x --log.tensorboard False --model.tail-skip true --data.blur.length 0 9 "
                            "--data.no-turns --optimiser.betas 0.5 0.9 --steps 7".split())
    assert (config.data.paths, config.data.flips, config.data.turns) == (("a", "b"), False, False)
    assert (config.optimiser.lr, config.optimiser.betas) == (1e-3, (0.5, 0.9))
    assert (config.resume, config.folder, config.log.tensorboard) == (True, "runs/x", False)
    assert (config.model.tail_skip, config.data.blur.length, config.steps) == (True, (0, 9), 7)
    assert (config.data.crop, config.schedule.kind) == (128, "plateau")  # the file's own


@pytest.mark.parametrize("line", ["train", "train dblrnet.yaml --nonsense 3", "train dblrnet.yaml --steps many",
                                  "train dblrnet.yaml --data.flips perhaps", "train --steps 3"])
def test_mistakes_in_typing_exit_with_2(line, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(line.split())
    assert left.value.code == 2


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "dblrgan.yaml", "--help"])
    text = capsys.readouterr().out
    for name in configuration.flat(TrainConfig()):
        assert f"--{name.replace('_', '-')}" in text, name
    assert "0.0002" in text  # the file's own value is the default that is shown


def test_settings_that_may_change_exist():
    assert set(configuration.flat(TrainConfig())) >= MAY_CHANGE


def test_every_setting_is_described():
    import ast
    import inspect

    from dblr_fast.training import config as module

    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ClassDef):
            for this, after in zip(node.body, [*node.body[1:], None], strict=True):
                plain = isinstance(this, ast.AnnAssign) and "Config" not in ast.unparse(this.annotation)
                said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert not plain or said, f"{node.name}: {ast.unparse(this)}"
    assert all(dataclasses.is_dataclass(getattr(module, name)) for name in dir(module) if name.endswith("Config"))


def test_a_configuration_that_is_not_there(capsys):
    assert cli.main(["train", "nobody.yaml"]) == 2
    said = capsys.readouterr().err
    assert "there is no configuration nobody.yaml" in said and "dblrgan.yaml, dblrnet.yaml" in said


WITHOUT = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
from dblr_fast import cli
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("missing, said", [("yaml", "PyYAML, which is not installed; pip install 'dblr_fast[train]'"),
                                           ("tyro", "the command line needs tyro")])
def test_what_is_missing_is_said_in_one_sentence(missing, said):
    done = subprocess.run([sys.executable, "-c", WITHOUT, missing, "train", "tiny.yaml"], capture_output=True,
                          text=True)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
