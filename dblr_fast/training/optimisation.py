"""Optimisers, the fall of their learning rates, and the moving average of the weights."""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import nn

from .config import OptimiserConfig, ScheduleConfig


def optimiser(config: OptimiserConfig, parameters, lr: float) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD over the parameters, in torch's fused form: on a CPU a quarter of the time of the others."""
    # On a GPU fused steps skip themselves where scaled gradients are not finite, and the host need not ask.
    form = {"lr": lr, "weight_decay": config.weight_decay, "fused": True}
    if config.name == "sgd":
        return torch.optim.SGD(parameters, momentum=config.betas[0], **form)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(parameters, betas=config.betas, eps=config.eps, **form)


class Schedule:
    """The learning rate of a step, for one optimiser.

    "plateau" is the paper's rule (Section IV-B: "to 1e-5 when the training loss does not decrease"): averages of
    the loss over `window` steps are compared, and after more than `patience` of them without a new best the rate
    is multiplied by `factor`, down to `least`.
    """

    def __init__(self, config: ScheduleConfig, lr: float, steps: int):
        self.config, self.lr, self.steps = config, lr, steps
        self.state = {"times": 1.0, "best": math.inf, "bad": 0, "sum": 0.0, "count": 0}

    def rate(self, step: int) -> float:
        """The learning rate of step number `step`, the first being 0."""
        config = self.config
        least = min(config.least, self.lr)
        if config.kind == "plateau":
            rate = max(self.lr * self.state["times"], least)
        elif config.kind == "cosine":
            share = min(max(step - config.warmup, 0) / max(self.steps - config.warmup, 1), 1.0)
            rate = least + (self.lr - least) * (1 + math.cos(math.pi * share)) / 2
        else:
            rate = self.lr
        return rate * min(1.0, (step + 1) / config.warmup) if config.warmup else rate

    def observe(self, loss: float) -> None:
        """Takes note of a step's training loss."""
        state = self.state
        state["sum"] += loss
        state["count"] += 1
        if state["count"] < self.config.window:
            return
        mean = state["sum"] / state["count"]
        state["sum"], state["count"] = 0.0, 0
        # A loss may be negative (eq. 5 with the saturating eq. 4), so the share is of its size.
        if mean < state["best"] - self.config.threshold * abs(state["best"]) or math.isinf(state["best"]):
            state["best"], state["bad"] = mean, 0
            return
        state["bad"] += 1
        if state["bad"] > self.config.patience:
            state["times"], state["bad"] = state["times"] * self.config.factor, 0

    def state_dict(self) -> dict[str, float]:
        return dict(self.state)

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.state = dict(state)


class Average:
    """Exponential moving average of a network's parameters and running statistics, in a network of its own.

    decay: 0.999 remembers about the last thousand steps; at the start it is (1 + n) / (10 + n) after n steps, so
    that the initial weights are soon forgotten. 0 keeps a plain copy of the present weights.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.model = deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, steps: int) -> None:
        """Moves the average towards a network that has taken so many steps."""
        decay = min(self.decay, (1 + steps) / (10 + steps)) if self.decay else 0.0
        pairs = list(zip(self.model.state_dict(keep_vars=True).values(), model.state_dict(keep_vars=True).values()))
        moving = [(a, b) for a, b in pairs if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in moving], [b for _, b in moving], 1 - decay)
        for a, b in pairs:
            if not a.is_floating_point():
                a.copy_(b)
