"""Steps replayed as graphs: the same bits as steps launched call by call.

A stand-in on the CPU replays what it was given by running it again, and writes where a graph would; test_cuda_device.py
has the graphs themselves.
"""

from contextlib import contextmanager
from itertools import count

import pytest
import torch
from training_cases import footage, losses, one_thread, same_tree, small, table  # noqa: F401  (two are fixtures)

from dblr_fast.errors import Refusal
from dblr_fast.training import graphs, train
from dblr_fast.training import state as states
from dblr_fast.training.nonfinite import NotFinite
from dblr_fast.training.ranks import Ranks
from dblr_fast.training.step import Step


class StandIn:
    """A Recorder on the CPU. Results and gradients of a pass stay where its first replay put them."""

    made: list["StandIn"] = []

    def __init__(self, device):
        self.ran = []
        self.made.append(self)

    @contextmanager
    def aside(self):
        self.ran.append("aside")
        yield

    def capture(self, function, frames):
        self.ran.append("capture")
        step = function.__self__
        parameters = [p for learner in (step.generator, step.critic) if learner for p in learner.network.parameters()]
        own = [p for p in parameters if p.grad is None]  # to the others a graph would add
        others = [p for p in parameters if p.grad is not None]
        places = []

        def replay():
            self.ran.append("replay")
            seen, before = [p.grad for p in own], [p.grad.clone() for p in others]
            for p in own:
                p.grad = None
            results = function(*frames)
            assert all(map(torch.equal, (p.grad for p in others), before)), "a pass touched another network's gradients"
            written = [results, [p.grad for p in own]]
            if not places:
                places.extend(written)
                return results
            for place, new in zip(sum(places, []), sum(written, [])):
                place.copy_(new)
            for p, grad in zip(own, seen):
                p.grad = grad
            return places[0]

        return replay


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(graphs, "Recorder", StandIn)
    monkeypatch.setattr(graphs, "require_possible", lambda ranks: None)
    monkeypatch.setattr(StandIn, "made", [])
    return StandIn


CONFIGURATIONS = {
    "DBLRNet": dict(optimiser__clip=1e-3),
    "DBLRNet, not clipped, cosine": dict(optimiser__clip=0.0, schedule__kind="cosine", schedule__warmup=2),
    "DBLRNet, SGD, bf16": dict(optimiser__name="sgd", precision__autocast="bf16"),
    "DBLRGAN": dict(loss__alpha=1e-2, optimiser__clip=1e-3),
    "DBLRGAN, not clipped, bf16": dict(loss__alpha=1e-2, optimiser__clip=0.0, precision__autocast="bf16"),
}
each_configuration = pytest.mark.parametrize("changes", CONFIGURATIONS.values(), ids=CONFIGURATIONS)


def same_runs(one, other):
    assert losses(one) == losses(other)
    assert table(one, "validation.csv") == table(other, "validation.csv")
    a, b = states.load(one), states.load(other)
    assert all(same_tree(a[name], b[name]) for name in ("learning", "random", "best", "position"))


@each_configuration
def test_same_losses_weights_and_statistics(footage, stand_in, tmp_path, changes):  # noqa: F811
    changes = dict(steps=8, **changes)
    train(small(tmp_path / "plain", **changes))
    assert not stand_in.made
    train(small(tmp_path / "graphs", cuda_graphs="always", **changes))
    same_runs(tmp_path / "plain", tmp_path / "graphs")
    recorder, = stand_in.made
    passes = 2 if "loss__alpha" in changes else 1
    assert recorder.ran == 3 * passes * ["aside"] + passes * ["capture", "replay"] + 4 * passes * ["replay"]


@pytest.mark.parametrize("alpha", [0.0, 1e-2], ids=["DBLRNet", "DBLRGAN"])
@pytest.mark.parametrize("first", ["never", "always"], ids=["launched", "replayed"])
def test_resumed_in_the_middle(footage, stand_in, tmp_path, alpha, first):  # noqa: F811
    changes = dict(loss__alpha=alpha, steps=11)
    train(small(tmp_path / "whole", **changes))
    train(small(tmp_path / "parts", cuda_graphs=first, **changes | {"steps": 6}))
    train(small(tmp_path / "parts", cuda_graphs="always", resume=True, **changes))
    same_runs(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("alpha", [0.0, 1e-2], ids=["DBLRNet", "DBLRGAN"])
def test_nan_in_a_replay(footage, stand_in, tmp_path, monkeypatch, alpha):  # noqa: F811
    """Step 5, the second that is replayed, says what a launched one says, and leaves the weights of step 4."""
    footage.bad, said, left, build = (9,), [], [], Step.__init__
    monkeypatch.setattr(Step, "__init__", lambda self, *a, **k: left.append(self) or build(self, *a, **k))
    for name, recorded in (("plain", False), ("graphs", True)):
        with pytest.raises(NotFinite, match="^step 5 is not finite .*blurred frames of sample 9") as stopped:
            train(small(tmp_path / name, loss__alpha=alpha, cuda_graphs="always" if recorded else "never"))
        said.append(str(stopped.value))
    assert said[0] == said[1]
    weights = [{name: p for learner in (step.generator, step.critic) if learner
                for name, p in learner.network.named_parameters()} for step in left]
    assert same_tree(*weights) and all(p.isfinite().all() for p in weights[1].values())
    saved = [states.load(tmp_path / name)["learning"] for name in ("plain", "graphs")]
    assert same_tree(*saved)
    kept = saved[1]["generator"]["network"]
    assert all(torch.equal(p, kept[name]) for name, p in left[1].model.named_parameters())


def test_scaled_gradients(footage, stand_in):  # noqa: F811
    """A replay takes the scale of its step: overflows skip steps and halve it."""
    results = []
    for recorded in (False, True):
        config = small("run", precision__autocast="fp16", cuda_graphs="always" if recorded else "never")
        step, values = Step(config, Ranks()), []
        step.generator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=3)
        feed = footage.batches(footage.training_set(config.data, 3, 3), ([2 * i, 2 * i + 1] for i in count()))
        for number in range(16):
            values.append((step(next(feed), number)[0], step.generator.scaler.get_scale()))
        results.append((values, step.state_dict()))
    scales = [scale for _, scale in results[1][0]]
    assert scales[0] > min(scales[4:]) and max(map(scales.count, scales)) > 2, scales
    assert repr(results[0][0]) == repr(results[1][0])  # a norm may be NaN
    assert same_tree(results[0][1], results[1][1])


def test_batches_have_one_shape(footage, stand_in):  # noqa: F811
    step = Step(small("run", cuda_graphs="always"), Ranks())
    windows = footage.training_set(small("run").data, 3, 3)
    batches = footage.batches(windows, [[0, 1], [2, 3, 4]])
    step(next(batches), 0)
    with pytest.raises(Refusal, match=r"batches of one shape, and blurred frames of \(3, 3, 24, 24\) follow some of "
                                      r"\(2, 3, 24, 24\); set it to never"):
        step(next(batches), 1)


def test_where_steps_cannot_be_recorded(footage, tmp_path):  # noqa: F811
    with pytest.raises(Refusal, match="cuda_graphs needs a GPU and one process, and the device is cpu and the "
                                      "processes are 1; leave it at auto"):
        train(small(tmp_path / "run", cuda_graphs="always"))
    with pytest.raises(Refusal, match="the device is cuda and the processes are 2"):
        graphs.require_possible(Ranks(0, 2, 0, torch.device("cuda", 0)))
    graphs.require_possible(Ranks(device=torch.device("cuda", 0)))
    assert graphs.wanted("auto", Ranks(device=torch.device("cuda", 0))) and not graphs.wanted("auto", Ranks())
    assert not graphs.wanted("auto", Ranks(0, 2, 0, torch.device("cuda", 0)))
    assert not graphs.wanted("never", Ranks(device=torch.device("cuda", 0)))
    assert not (tmp_path / "run").exists() and not footage.asked
