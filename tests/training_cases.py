"""What the tests of training share: footage made of numbers, small configurations, a run's tables."""

import csv

import numpy as np
import pytest
import torch

import dblr_fast.data
from dblr_fast.data.config import DataConfig
from dblr_fast.training.config import (
    CheckpointConfig,
    DiscriminatorConfig,
    LogConfig,
    LossConfig,
    ModelConfig,
    OptimiserConfig,
    ScheduleConfig,
    TrainConfig,
    ValidationConfig,
)

SHARP = 7  # seed of the validation windows


def picture(number, side):
    """Rectangles of several greys over a gradient, (side, side) float32."""
    rng = np.random.default_rng([SHARP, number])
    out = np.linspace(*rng.uniform(0.2, 0.8, 2), side, dtype=np.float32)[None].repeat(side, 0)
    for _ in range(8):
        (top, left), (height, width) = rng.integers(0, side, 2), rng.integers(2, 2 + side // 2, 2)
        out[top:top + height, left:left + width] = rng.uniform(0.05, 0.95)
    return out


class Windows(torch.utils.data.Dataset):
    """Numbered samples: pictures under a horizontal blur of five pixels, the same in all frames."""

    def __init__(self, side, frames, seed=0, bad=()):
        self.side, self.frames, self.seed, self.bad = side, frames, seed, bad

    def __getitem__(self, number):
        sharp = torch.from_numpy(picture(self.seed * 10**6 + number, self.side))
        blurred = torch.stack([sharp.roll(shift, 1) for shift in range(-2, 3)]).mean(0)
        if number in self.bad:
            blurred = blurred * float("nan")
        return {"blurred": blurred.expand(self.frames, -1, -1).clone(), "sharp": sharp[None]}


class Footage:
    """Stands in for dblr_fast.data: serves Windows in this process, and notes the numbers asked for.

    bad: numbers of samples that are NaN; order: of the samples of each batch, in which sums over them are taken.
    """

    names = ("training_set", "validation_set", "batches")

    def __init__(self):
        self.asked, self.bad, self.order = [], (), None

    def training_set(self, config, frames, seed, progress=None):
        return Windows(config.crop, frames, seed, self.bad)

    def validation_set(self, config, frames, progress=None):
        samples = [Windows(config.crop, frames, 999)[i] for i in range(config.validation_windows)]
        return [{"name": f"window {i}", "blurred": s["blurred"],
                 "blurred_rgb": s["blurred"][frames // 2].expand(3, -1, -1), "sharp_rgb": s["sharp"].expand(3, -1, -1)}
                for i, s in enumerate(samples)]

    def batches(self, dataset, numbers, workers=2, prefetch=4, **options):
        for batch in numbers:
            self.asked.append(list(batch))
            samples = [dataset[batch[i]] for i in self.order or range(len(batch))]
            yield {key: torch.stack([s[key] for s in samples]) for key in ("blurred", "sharp")} | {
                "numbers": torch.tensor(list(batch))}


@pytest.fixture
def footage(monkeypatch):
    """Windows made here instead of those of files."""
    made = Footage()
    for name in made.names:
        monkeypatch.setattr(dblr_fast.data, name, getattr(made, name), raising=False)
    return made


@pytest.fixture(autouse=True)
def one_thread():
    """Tests that import this run on one thread: maps here are too small for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(folder, /, **changes):
    """A configuration that trains in a second or two: width 8, one block, crops of 24. changes: "section.key"
    with a dot written as two underscores."""
    config = TrainConfig(
        folder=str(folder), steps=6, batch=2, seed=3, device="cpu", ema=0.9,
        data=DataConfig(paths=("footage",), crop=24, workers=0, validation_windows=3, validation_size=24),
        model=ModelConfig(frames=3, width=8, blocks=1, init="identity"),
        loss=LossConfig(), discriminator=DiscriminatorConfig(width=4, hidden=16, pool=1),
        optimiser=OptimiserConfig(lr=1e-3, clip=1.0), schedule=ScheduleConfig(window=2, patience=0),
        validation=ValidationConfig(every=3, pictures=1), log=LogConfig(every=1, tensorboard=False),
        checkpoint=CheckpointConfig(every=2))
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        setattr(getattr(config, section) if section else config, key, value)
    return config


def learning(folder, **changes):
    """A run long enough to learn the blur of the samples."""
    return small(folder, **{"steps": 100, "batch": 4, "ema": 0.95, "optimiser__lr": 2e-3, "schedule__kind": "constant",
                            "log__every": 20, "validation__every": 100, "checkpoint__every": 100, **changes})


def same_tree(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_tree(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_tree, a, b))
    return a == b


def table(folder, name="train.csv"):
    """Rows of a run's table, numbers as floats."""
    with open(f"{folder}/{name}", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def losses(folder):
    """{step: every value of the step but its speed}."""
    return {row.pop("step"): {k: v for k, v in row.items() if k != "images_per_s"} for row in table(folder)}
