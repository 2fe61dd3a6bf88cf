"""Where a NaN or an infinity came from: the samples, the layer, or the gradients of which layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import RunError


class NotFinite(RunError):
    """A loss or a gradient was NaN or infinite; the message names the step, the samples and the layer."""


def layers(model) -> list[tuple[str, object]]:
    """("L7 (blocks.2.first)", module) of all layers of Table I, in order; L3 to L32 are ConvBN modules."""
    named = {module: name for name, module in model.named_modules()}
    all_of_them = [model.conv1, model.conv2, *model.body(), model.conv33, model.conv34, model.conv35]
    return [(f"L{i + 1} ({named[module]})", module) for i, module in enumerate(all_of_them)]


@torch.no_grad()
def first_bad_layer(model, x: Tensor) -> str | None:
    """The first layer of a DBLRNet whose output for the windows x (N, T, H, W) is not finite; None if all are.

    Walks through Table I with torch's plain operations and the batch's own statistics, updating nothing.
    """
    if model.conv1.weight.dim() == 5:
        x = x.unsqueeze(1)
    l2 = None
    for number, (name, module) in enumerate(layers(model), 1):
        if number <= 2:
            time = (0,) * (module.weight.dim() - 4)
            run = F.conv3d if time else F.conv2d
            x = F.relu(run(x, module.weight, module.bias, padding=(*time, 1, 1)))
        elif hasattr(module, "bn"):
            in_block = number <= 2 + 2 * len(model.blocks)
            if number % 2:  # the first of a pair: L3, L5, ... L31
                skip = x
            y = F.conv2d(x, module.conv.weight, module.conv.bias, padding=1)
            y = F.batch_norm(y, None, None, module.bn.weight, module.bn.bias, True, 0.0, module.bn.eps)
            if number % 2:
                x = F.relu(y)
            elif in_block:
                x = y + skip
            else:
                x = y + (skip + l2 if model.tail_skip else l2)
        else:
            x = F.conv2d(x, module.weight, module.bias, padding=1)
            x = x if module is model.conv35 else F.relu(x)
        if number == 2:
            x = l2 = x.squeeze(2) if x.dim() == 5 else x
        if not torch.isfinite(x).all():
            return name
    return None


@torch.no_grad()
def first_bad_module(discriminator: nn.Module, x: Tensor) -> str | None:
    """The first module of a Discriminator whose output for the frames x (N, 1, H, W) is not finite; None if all are.

    Looked for in evaluation mode, which updates nothing and waits for no other process.
    """
    training = discriminator.training
    discriminator.eval()
    try:
        for part in ("features", "classifier"):
            for number, module in enumerate(getattr(discriminator, part)):
                x = module(x)
                if not torch.isfinite(x).all():
                    return f"{part}.{number}"
    finally:
        discriminator.train(training)
    return None


def bad_parameter(model: nn.Module, gradients: bool = False) -> str | None:
    """The name of the first parameter that is not finite; of gradients the last, where backward meets it first."""
    named = list(model.named_parameters())
    for name, p in reversed(named) if gradients else named:
        tensor = p.grad if gradients else p
        if tensor is not None and not torch.isfinite(tensor).all():
            return name
    return None


def explanation(model, discriminator, blurred: Tensor, sharp: Tensor, numbers: Tensor) -> tuple[int, str] | None:
    """What is not finite in a step on these samples, as the end of a sentence; None if all seems to be.

    model: the DBLRNet; discriminator: the Discriminator, or None; both with the gradients of the step. The number
    before the sentence tells causes (0) from gradients (1), which processes share, so that one process' samples
    spoil those of all.
    """
    for name, batch in (("blurred", blurred), ("sharp", sharp)):
        for number, sample in zip(numbers.tolist(), batch):
            if not torch.isfinite(sample).all():
                return 0, f"the {name} frames of sample {number} are not finite; look at the footage"
    for what, network in (("the network", model), ("the discriminator", discriminator)):
        if network is not None and (name := bad_parameter(network)):
            return 0, f"parameter {name} of {what} is not finite already"
    if name := first_bad_layer(model, blurred):
        return 0, f"the output of layer {name} is not finite"
    if discriminator is not None and (name := first_bad_module(discriminator, sharp)):
        return 0, f"the output of the discriminator's {name} is not finite"
    for what, network in (("the network", model), ("the discriminator", discriminator)):
        if network is not None and (name := bad_parameter(network, gradients=True)):
            return 1, f"the gradient of {what} is not finite from parameter {name} on backwards"
    return None
