"""The training loop: from a configuration to a folder with a checkpoint, weights, curves and pictures."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from ..checkpoint import save_model
from ..errors import Refusal
from ..replace import replacing
from . import graphs
from . import state as states
from .config import TrainConfig
from .configuration import dump
from .exporting import metadata
from .journal import Journal, Speed, reading
from .provenance import versions
from .ranks import Ranks, joined
from .step import Step
from .validation import NAMES, validate

BEST = "best.safetensors"


@dataclass(frozen=True)
class Result:
    """How a training ended: steps done, whether all or enough of them, the signal that stopped it, the scores of
    the last validation, and the rank of this process."""

    folder: Path
    step: int
    finished: bool
    signal: int | None
    scores: dict[str, float]
    rank: int = 0


def train(config: TrainConfig) -> Result:
    """Trains as the configuration says, in one process or, under torchrun or srun, in many.

    Ctrl-C and SIGTERM end it after the step at hand with a checkpoint written. Raises Refusal (settings, data or
    a checkpoint that do not fit), nonfinite.NotFinite (a NaN or an infinity) or OSError (a full disk).
    """
    config.check()
    with joined(config.device, config.distributed.backend, config.distributed.timeout) as ranks:
        if config.precision.autocast == "fp16" and ranks.device.type != "cuda":
            raise Refusal(f"precision.autocast fp16 needs a GPU, and the device is {ranks.device}; take bf16 or off")
        if config.cuda_graphs == "always":
            graphs.require_possible(ranks)
        return _Run(config, ranks).go()


class _Run:
    def __init__(self, config: TrainConfig, ranks: Ranks):
        self.config, self.ranks, self.folder = config, ranks, Path(config.folder)
        saved = ranks.agree(self._saved)
        step = saved["step"] if saved else 0
        if len(set(ranks.gather(step))) > 1:
            raise Refusal(f"the processes find different checkpoints in {self.folder}; give a folder that all of "
                          "them share")
        self.data, self.windows = ranks.in_turn(self._data)
        self.learning = Step(config, ranks, resuming=saved is not None)
        self.step, self.position = step, 0  # steps done, number of the next sample
        self.sums, self.counted = dict.fromkeys(self.learning.names, 0.0), 0
        self.best = {"psnr": -1.0, "since": 0}
        self.scores: dict[str, float] = {}
        if saved:
            self._restore(saved)
        self.journal = ranks.agree(self._journal)

    def _saved(self) -> dict | None:
        """The checkpoint to go on from, or None. Raises Refusal where there is one and --resume is not given."""
        if not (self.folder / states.NAME).exists():
            return None
        if not self.config.resume:
            raise Refusal(f"{self.folder} holds a run already; go on with it by --resume, or choose another --folder")
        saved = states.load(self.folder)
        states.require_same(saved, self.config, self.folder)
        return saved

    def _data(self):
        from ..data import training_set, validation_set

        config = self.config
        frames = config.model.frames
        with reading("training footage", self.ranks.first) as progress:
            samples = training_set(config.data, frames, config.seed, progress)
        with reading("validation windows", self.ranks.first) as progress:
            windows = validation_set(config.data, frames, progress) if config.validation.every else []
        return samples, windows

    def _journal(self) -> Journal | None:
        if not self.ranks.first:
            return None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refusal(f"the run's folder {self.folder} cannot be made ({error.strerror})") from None
        states.remove_leftovers(self.folder)
        with replacing(self.folder / "config.yaml") as temporary:
            temporary.write_text(dump(self.config), encoding="utf-8")
        with open(self.folder / "versions.yaml", "a", encoding="utf-8") as file:
            file.write(versions(self.step, self.ranks))
        return Journal(self.folder, self.learning.names, NAMES, self.step, self.config.steps,
                       self.config.log.tensorboard)

    def _restore(self, saved: dict) -> None:
        self.learning.load_state_dict(saved["learning"])
        self.position, self.best, self.scores = saved["position"], dict(saved["best"]), dict(saved["scores"])
        self.sums, self.counted = dict(saved["sums"]), saved["counted"]
        if self.ranks.rank < len(saved["random"]):  # a process more than there were keeps its own seed
            states.set_random_state(saved["random"][self.ranks.rank])

    def go(self) -> Result:
        received: list[int] = []
        try:
            with _heeding(received):
                finished = self._steps(received)
        finally:
            if self.journal is not None:
                self.journal.close()
        number = None if finished else (received or [signal.SIGTERM])[0]  # or another process received it
        return Result(self.folder, self.step, finished, number, self.scores, self.ranks.rank)

    def _numbers(self):
        """The numbers of this process' samples, batch by batch: step * batch * world + rank * batch + i."""
        batch, world = self.config.batch, self.ranks.world
        for start in count(self.position, batch * world):
            begin = start + self.ranks.rank * batch
            yield list(range(begin, begin + batch))

    def _steps(self, received: list[int]) -> bool:
        """Runs until all steps are done or enough; returns whether that is so (or a signal came before)."""
        from ..data import batches

        config, learning, images = self.config, self.learning, self.config.batch * self.ranks.world
        if self.journal is not None:
            self.journal.say(f"{'going on from' if self.step else 'starting at'} step {self.step} of {config.steps}, "
                             f"{images} windows a step, {self.ranks.world} process(es), {self.ranks.device}, "
                             f"in {self.folder}")
        if self.step == 0 and config.validation.every:
            self._validate()
        feed = batches(self.data, self._numbers(), min(config.data.workers, _processors()), config.data.prefetch,
                       pin_memory=self.ranks.device.type == "cuda")
        speed, saved_at = Speed(), self.step
        try:
            while self.step < config.steps and not self._enough():
                batch = next(feed)
                if self.step == 0 and self.journal is not None and config.validation.pictures:
                    self.journal.first_batch(batch)
                values, stop = learning(batch, self.step, bool(received))
                self.step += 1
                self.position += images
                speed.images += images
                for name, value in values.items():
                    self.sums[name] += value
                self.counted += 1
                if self.step % config.log.every == 0 or self.step == config.steps:
                    self._line(speed)
                with speed:
                    if config.validation.every and (self.step % config.validation.every == 0
                                                    or self.step == config.steps):
                        self._validate()
                    if self.step % config.checkpoint.every == 0 or stop:
                        self._save()
                        saved_at = self.step
                if self.journal is not None:
                    self.journal.progress(self.step)
                if stop:
                    return self.step >= config.steps
        finally:
            if hasattr(feed, "close"):
                feed.close()
        if saved_at != self.step or not (self.folder / states.NAME).exists():
            self._save()
        return True

    def _line(self, speed: Speed) -> None:
        means = {name: value / self.counted for name, value in self.sums.items()}
        self.sums, self.counted = dict.fromkeys(self.sums, 0.0), 0
        if self.journal is not None:
            lr = self.learning.generator.optimiser.param_groups[0]["lr"]
            self.journal.line(self.step, means, lr, speed.rate())

    def _validate(self) -> None:
        average = self.learning.average.model
        if not self.config.distributed.sync_bn:  # running statistics are each process's own: rank 0's count
            self.ranks.from_first(average.buffers())
        self.scores, pictures = validate(average, self.windows, self.ranks, self.config.validation.pictures)
        if self.scores["psnr_y"] > self.best["psnr"]:
            self.best = {"psnr": self.scores["psnr_y"], "since": 0}
            if self.ranks.first:
                save_model(average, self.folder / BEST, metadata(self._described(), "best"))
        else:
            self.best["since"] += 1
        if self.journal is not None:
            self.journal.validated(self.step, self.scores, pictures)

    def _enough(self) -> bool:
        """Whether the PSNR has not risen for `validation.patience` validations (the paper's early stop)."""
        patience = self.config.validation.patience
        if not patience or self.best["since"] < patience:
            return False
        if self.journal is not None:
            self.journal.say(f"ending at step {self.step}: the PSNR of Y has not risen above "
                             f"{self.best['psnr']:.2f} dB in {self.best['since']} validations")
        return True

    def _described(self) -> dict:
        return {"configuration": dump(self.config), "step": self.step, "scores": self.scores,
                "world": self.ranks.world}

    def _save(self) -> None:
        random = self.ranks.gather(states.random_state())
        if self.ranks.first:
            states.save(self.folder, {
                **self._described(), "position": self.position, "best": self.best, "sums": self.sums,
                "counted": self.counted, "learning": self.learning.state_dict(), "random": random})
        self.ranks.gather(None)  # none goes on, or ends, before the checkpoint is there


def _processors() -> int:
    """Processors this process may use; more workers than those only get in each other's way."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _heeding(received: list[int]):
    """Context in which SIGINT and SIGTERM are noted; a second one interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number, _):
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
