"""One training step: the networks, their optimisers, and what a batch does to them.

Before any weight changes, the loss and the norm of the gradient are looked at (a NaN stops the run with the weights
intact, a signal with a checkpoint). So a step is made of passes, forward to backward, between which that happens; they
are what `cuda_graphs` replays as CUDA graphs.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .. import levels
from ..gan import Discriminator
from . import graphs, nonfinite
from .config import TrainConfig
from .losses import RESTORED, adversarial_loss, combined_loss, content_loss, discriminator_loss
from .optimisation import Average, Schedule, optimiser
from .ranks import Ranks
from .start import initial_model

_AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}
# The name of DDP's option to copy rank 0's running statistics to all before each step; torch 2.13 changed it.
_SYNC_BUFFERS = next(name for name in ("forward_sync_buffers", "broadcast_buffers")
                     if name in inspect.signature(nn.parallel.DistributedDataParallel).parameters)
_SMALLEST_SCALE = 2.0**-20  # gradients that overflow float16 at this scale are not small-number trouble


class Learner:
    """A network with its optimiser, schedule and gradient scaler; under DDP where there are several processes."""

    def __init__(self, network: nn.Module, lr: float, config: TrainConfig, ranks: Ranks):
        self.network, self.config, self.device = network, config, ranks.device
        self.optimiser = optimiser(config.optimiser, network.parameters(), lr)
        self.schedule = Schedule(config.schedule, lr, config.steps)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.precision.autocast == "fp16")
        self.run = network
        if ranks.world > 1:
            # Running statistics stay each process's own (or are the same, where synchronised): rank 0's count.
            self.run = nn.parallel.DistributedDataParallel(
                network, device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
                gradient_as_bucket_view=True, **{_SYNC_BUFFERS: False})

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def prepare(self, step: int) -> Tensor:
        """After backward: the learning rate, and the gradient unscaled and clipped; returns its norm before clipping.
        `advance` then takes the step."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.rate(step)
        self.scaler.unscale_(self.optimiser)
        if self.config.optimiser.clip:
            return nn.utils.clip_grad_norm_(self.network.parameters(), self.config.optimiser.clip)
        return nn.utils.get_total_norm([p.grad for p in self.network.parameters() if p.grad is not None])

    def advance(self) -> None:
        self.scaler.step(self.optimiser)
        self.scaler.update()

    def state_dict(self) -> dict:
        return {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict(),
                "schedule": self.schedule.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])


class Step:
    """The networks of a run. Calling it trains on one batch: D first, then G, where alpha is above 0.

    names: what a call returns the values of, means over the batches of all processes. "input" is the content loss of
    the blurred centre frames as they are, to compare "content" with; "discriminator" is D's loss, "d_real" and
    "d_restored" are the means of D(h) over real sharp and over restored frames.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks, resuming: bool = False):
        self.config, self.ranks = config, ranks
        if ranks.device.type == "cuda":  # for the discriminator; the ops follow their level by themselves
            exact = config.precision.level == "exact"
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not exact
        self.names = ["loss", "content", "input", "gradient"]
        self.alpha = config.loss.alpha
        torch.manual_seed(config.seed)
        model = self._placed(ranks.agree(lambda: initial_model(config.model, with_weights=not resuming)))
        self.average = Average(model, config.ema)
        self.generator = Learner(self._shared(model), config.optimiser.lr, config, ranks)
        self.critic = None
        if self.alpha:
            part = config.discriminator
            network = self._placed(Discriminator(hidden=part.hidden, pool=part.pool, width=part.width))
            self.critic = Learner(self._shared(network), part.lr or config.optimiser.lr, config, ranks)
            self.names += ["adversarial", "discriminator", "d_gradient", "d_real", "d_restored"]
        passes = (ranks.device, getattr(torch, config.precision.dtype))
        self.passes = (graphs.RecordedPasses(*passes, graphs.Recorder(ranks.device))
                       if graphs.wanted(config.cuda_graphs, ranks) else graphs.Passes(*passes))
        self._restored: Tensor | None = None  # from D's pass to G's
        torch.manual_seed(config.seed + 1 + ranks.rank)

    @property
    def model(self):
        return self.generator.network

    def _placed(self, network: nn.Module) -> nn.Module:
        network = network.to(self.ranks.device, getattr(torch, self.config.precision.dtype))
        if self.config.precision.channels_last:
            network.to(memory_format=torch.channels_last)
        return network.train()

    def _shared(self, network: nn.Module) -> nn.Module:
        if self.config.distributed.sync_bn and self.ranks.world > 1:
            from .sync_norm import synchronised

            return synchronised(network)
        return network

    @contextmanager
    def arithmetic(self):
        """Context of the networks' forward: level and autocast, whose copies of weights end with it: opened and closed
        within a pass, it leaves no graph one that another made."""
        precision = self.config.precision
        kind = self.ranks.device.type
        with levels.precision(precision.level), torch.autocast(
                kind, _AUTOCAST.get(precision.autocast), enabled=precision.autocast != "off"):
            yield

    def __call__(self, batch: dict[str, Tensor], number: int, stop: bool = False) -> tuple[dict[str, float], bool]:
        """Step `number` (from 0) on dict(blurred (N, T, H, W), sharp (N, 1, H, W), numbers (N,)).

        stop: whether this process was asked to end. Returns ({name: value}, whether any process was). Raises
        nonfinite.NotFinite, in all processes, before any weight has changed.
        """
        frames = self.passes.placed(batch)
        critic = [] if self.critic is None else self._train_critic(frames, number, batch)
        loss, content, before, *adversarial = self.passes.run(self._generate, self.generator.optimiser, frames)
        norm = self.generator.prepare(number)
        values = self._agreed([loss, content, before, norm, *adversarial, *critic], stop)
        self._require_finite(self.generator, values[0], values[3], number, batch)
        self.generator.advance()
        self.average.update(self.model, number + 1)
        for learner in (self.generator, self.critic):
            if learner is not None:
                learner.schedule.observe(values[0])
        return dict(zip(self.names, values)), values[-1] > 0

    def _train_critic(self, frames: list[Tensor], number: int, batch) -> list[Tensor]:
        """D's step; its loss, the norm of its gradient, and the means of D(h)."""
        loss, *means = self.passes.run(self._criticise, self.critic.optimiser, frames)
        norm = self.critic.prepare(number)
        mean_loss, mean_norm, *_ = self._agreed([loss, norm], False)
        self._require_finite(self.critic, mean_loss, mean_norm, number, batch)
        self.critic.advance()
        return [loss, norm, *means]

    def _criticise(self, blurred: Tensor, sharp: Tensor) -> list[Tensor]:
        """D's pass, with G's forward: D's loss and the means of D(h) over real and over restored frames. Those go
        through it apart, each normalised by its own statistics, as the guidelines of the paper's [54] have it."""
        with self.arithmetic():
            self._restored = self.generator.run(blurred)
        with self.arithmetic():
            real, fake = self.critic.run(sharp), self.critic.run(self._restored.detach())
        loss = discriminator_loss(real, fake)
        self.critic.backward(loss)
        return [loss.detach(), *(logits.detach().float().softmax(1)[:, 1 - RESTORED].mean() for logits in (real, fake))]

    def _generate(self, blurred: Tensor, sharp: Tensor) -> list[Tensor]:
        """G's pass, with its forward unless D's had it: loss, content loss, that of the blurred frames, adversarial
        loss."""
        if self.critic is None:
            with self.arithmetic():
                restored = self.generator.run(blurred)
        else:  # held any longer, its autograd graph would tie a capture to the stream of the step before
            restored, self._restored = self._restored, None
        loss = content = content_loss(restored, sharp)
        extra = []
        if self.critic is not None:
            self.critic.network.requires_grad_(False)  # G's gradient passes through D and leaves none there
            with self.arithmetic():
                logits = self.critic.network(restored)
            adversarial = adversarial_loss(logits, self.config.loss.generator == "saturating")
            self.critic.network.requires_grad_(True)
            loss = combined_loss(content, adversarial, self.alpha)
            extra = [adversarial.detach()]
        middle = blurred.shape[1] // 2
        before = content_loss(blurred[:, middle:middle + 1], sharp)
        self.generator.backward(loss)
        return [loss.detach(), content.detach(), before, *extra]

    def _agreed(self, values: list[Tensor], stop: bool) -> list[float]:
        """The values' means over all processes, and the share of processes that were asked to stop."""
        wide = torch.stack([v.double() for v in values] + [torch.full_like(values[0], float(stop)).double()])
        return self.ranks.mean(wide).tolist()

    def _require_finite(self, learner: Learner, loss: float, norm: float, number: int, batch) -> None:
        finite = all(abs(v) < float("inf") for v in (loss, norm))
        if learner.scaler.is_enabled():  # an overflow skips the step and halves the scale
            finite = abs(loss) < float("inf") and learner.scaler.get_scale() > _SMALLEST_SCALE
        if finite:
            return
        numbers = batch["numbers"]
        device, dtype = self.ranks.device, getattr(torch, self.config.precision.dtype)
        with self.arithmetic():
            why = nonfinite.explanation(
                self.model, self.critic and self.critic.network, batch["blurred"].to(device, dtype),
                batch["sharp"].to(device, dtype), numbers)
        samples = f"samples {', '.join(map(str, numbers.tolist()))}"
        found = sorted(((why[0], rank, f"{where}: {why[1]}") for rank, (where, why)
                        in enumerate(self.ranks.gather((samples, why))) if why))
        raise nonfinite.NotFinite(
            f"step {number + 1} is not finite (loss {loss:g}, norm of the gradient {norm:g}); "
            + (found[0][-1] if found else f"{samples}, where each layer by itself is finite; a lower learning rate or "
               "optimiser.clip may help"))

    def state_dict(self) -> dict:
        return {"average": self.average.model.state_dict(), "generator": self.generator.state_dict(),
                "critic": self.critic and self.critic.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.average.model.load_state_dict(state["average"])
        self.generator.load_state_dict(state["generator"])
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
