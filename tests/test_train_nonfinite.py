"""A NaN or an infinity ends a run with the step, the samples and the layer named, and the weights intact."""

import pytest
import torch
from training_cases import footage, one_thread, small  # noqa: F401  (two are fixtures)

from dblr_fast import cli, commands
from dblr_fast.training import state as states
from dblr_fast.training import train
from dblr_fast.training.nonfinite import NotFinite
from dblr_fast.training.step import Step


def poison(monkeypatch, change):
    """Changes the networks of a run when they have been built."""
    made = Step.__init__

    def changed(self, *arguments, **options):
        made(self, *arguments, **options)
        with torch.no_grad():
            change(self)

    monkeypatch.setattr(Step, "__init__", changed)


def test_a_bad_sample_is_named(footage, tmp_path):  # noqa: F811
    footage.bad = (5,)
    with pytest.raises(NotFinite, match="^step 3 is not finite .*samples 4, 5: the blurred frames of sample 5 are not"):
        train(small(tmp_path / "run", steps=4))
    assert states.load(tmp_path / "run")["step"] == 2  # the checkpoint before it stands


@pytest.mark.parametrize("change, alpha, said", [
    (lambda s: s.model.conv1.weight.fill_(1e38), 0.0, r"the output of layer L1 \(conv1\)"),
    (lambda s: s.model.blocks[0].second.conv.weight.fill_(1e38), 0.0, r"the output of layer L4 \(blocks.0.second\)"),
    (lambda s: s.model.conv34.weight.fill_(1e38), 0.0, r"the output of layer L8 \(conv34\)"),
    (lambda s: s.model.conv31.bn.bias.fill_(float("nan")), 0.0, "parameter conv31.bn.bias of the network"),
    (lambda s: s.critic.network.features[3].weight.fill_(1e38), 1e-4, "the output of the discriminator's features.3"),
], ids=["L1", "L4", "L8", "parameter", "discriminator"])
def test_the_layer_is_named(footage, tmp_path, monkeypatch, change, alpha, said):  # noqa: F811
    poison(monkeypatch, change)
    with pytest.raises(NotFinite, match=f"step 1 is not finite .*samples 0, 1: .*{said}"):
        train(small(tmp_path / "run", loss__alpha=alpha, validation__every=0))


def test_nan_exits_with_1_and_one_sentence(footage, tmp_path, monkeypatch, capsys):  # noqa: F811
    footage.bad = (0,)
    monkeypatch.setattr(commands, "parse", lambda _: small(tmp_path / "run"))
    assert cli.main(["train", "it.yaml"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
