"""What makes a short training useful: where it starts, the loss, statistics, steps, brightness held."""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import nn

from .. import ops
from ..initialization import identity_

ALL = None  # a depth: every layer


@torch.no_grad()
def start_(model, depth=ALL):
    """`identity_`, with the features below the picture awake; in place. Returns the model.

    The picture passes through channel 0 alone, so every other channel may carry signal from the first step
    on: with all gammas zero, as `identity_` leaves them, nothing below them has a gradient. Kernels that see
    the picture sum to zero: features tell detail, not brightness. The blocks from `depth` on stay silent.
    """
    identity_(model)
    inner = [block.first.conv for block in model.blocks] + [model.conv31.conv]
    for kernels in (model.conv1.weight[1:], *(conv.weight[:, :1] for conv in inner),
                    *(conv.weight[1:, :1] for conv in (model.conv2, model.conv33, model.conv34))):
        kernels.sub_(FlatResponse.mean(kernels))
    # Detail is a tenth as strong as brightness; this brings it back to the scale of the picture.
    model.conv1.weight[1:] *= 3.0
    model.conv2.weight[1:] *= 1.5
    wake_(model, depth)
    model.conv32.conv.weight[0].zero_()
    model.conv32.bn.weight[0] = 0.1
    return model


@torch.no_grad()
def wake_(model, depth=ALL):
    """Let those of the first `depth` residual blocks that are silent write into every channel but the picture's; in
    place. What blocks before them have learned stays as it is: a picture is changed through L31 and L32 alone.
    """
    for block in model.blocks[:depth]:
        if not block.second.bn.weight.any():
            block.second.bn.weight[1:] = 0.2


@torch.no_grad()
def settle_(model):
    """Gather behind L32's sum what L1, L2 and the blocks add to the picture's channel where a picture is flat; in place.

    The picture passes with weight 1 and kernels that see it sum to zero, so all comes out as before, but for borders,
    where zeros are not moved with it. But ReLU after a negative bias cuts off whatever is darker; and in 16 bits a
    picture that drifts by less than a step from block to block is rounded by each.
    """
    last, moved = model.conv32.bn.bias, model.conv1.bias[0] + model.conv2.bias[0]
    model.conv1.bias[0] = model.conv2.bias[0] = 0
    last[0] += 2 * moved if model.tail_skip else moved
    exact = deepcopy(model).cpu().double().eval()
    flat = torch.full((1, model.frames, 4 * len(model.blocks) + 16, 4 * len(model.blocks) + 16), 0.5).double()
    y = ops.stem(flat, exact.conv1.weight, exact.conv1.bias, exact.conv2.weight, exact.conv2.bias)
    middle = flat.shape[-1] // 2
    for block, of in zip(exact.blocks, model.blocks):
        before, y = y, block(y)
        added = (y - before)[0, 0, middle, middle].to(last)
        of.second.bn.bias[0] -= added
        if model.tail_skip:
            last[0] += added


def restore(model, x, depth=ALL):
    """The restored frame of windows x (N, T, H, W), by as many of the residual blocks as `depth` says.

    While the blocks beyond it and L33 to L35 are as `start_` left them this is what the whole network
    computes, except that negative luma is not cut off. Without them a step costs a third and less.
    """
    if depth is ALL:
        return model(x)
    features = ops.stem(x, model.conv1.weight, model.conv1.bias, model.conv2.weight, model.conv2.bias)
    y = features
    for block in model.blocks[:depth]:
        y = block(y)
    passed = y[:, :1] + features[:, :1] if model.tail_skip else features[:, :1]
    y = model.conv31(y, relu=True)
    conv, bn = model.conv32.conv, model.conv32.bn
    scale = bn.weight[:1] * torch.rsqrt(bn.running_var[:1] + bn.eps)
    shift = bn.bias[:1] + (conv.bias[:1] - bn.running_mean[:1]) * scale
    y = F.conv2d(y, conv.weight[:1] * scale[:, None, None, None], shift, padding=1) + passed
    return 0.5 * y if model.tail_skip else y


def charbonnier(restored, sharp, epsilon, border=8):
    """Mean of sqrt(d^2 + epsilon^2) - epsilon of each window: quadratic below epsilon, the absolute error
    above.

    restored, sharp: (N, 1, H, W); returns (N,). The outer `border` pixels, where zeros and light from outside
    the crop reach in, count a twentieth: in a crop they are many, in a picture few.
    """
    error = torch.sqrt((restored - sharp) ** 2 + epsilon ** 2) - epsilon
    weight = torch.full_like(error[:1], 0.05)
    weight[..., border:-border, border:-border] = 1.0
    return (error * weight).sum((1, 2, 3)) / weight.sum()


@torch.no_grad()
def calibrate(model, batches):
    """Set the running statistics of every batch norm to their means over `batches` of windows (N, T, H, W),
    and put the model into evaluation mode, in which it is then trained.

    With the statistics held a picture is treated alike in training and in use, whatever else is in the
    batch: normalising each small batch by itself would harm sharp pictures first. A channel that is silent
    as yet is not normalised.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    sums, count = None, 0
    model.train()
    for window in batches:
        for m in norms:
            m.momentum = 1.0
        model(window)
        now = [torch.stack([m.running_mean, m.running_var]) for m in norms]
        sums = now if sums is None else [a + b for a, b in zip(sums, now)]
        count += 1
    for m, momentum, total in zip(norms, momenta, sums):
        m.momentum = momentum
        mean, variance = total / count
        m.running_mean.copy_(mean)
        m.running_var.copy_(torch.where(variance > 1e-12, variance, 1.0))
    model.eval()


class FlatResponse:
    """Holds the sums of the kernels that see the picture itself (all of L1's, and those that take channel 0
    of the residual stream), so that features tell detail and not brightness; and, in L1 and L2, the kernels
    and biases through which the picture passes, for with a negative bias ReLU cuts off what is dark.

    All pixels agree on brightness, so without this every step is first of all a jump of brightness (15 times
    the rest, measured with Adam) and the next step's gradient mostly mends it. Holding the sums of all
    kernels would be too much: a filter that sums to zero cannot pass a rectified feature on as it is.
    """

    def __init__(self, model):
        tail = [model.conv33, model.conv34, model.conv35]
        later = [model.conv2, *(b.first.conv for b in model.blocks), model.conv31.conv, *tail]
        self.held = [(model.conv1.weight, model.conv1.weight.shape[1]), *((conv.weight, 1) for conv in later)]
        self.means = [self.mean(w.detach()[:, :n]) for w, n in self.held]
        self.stem = [model.conv1.weight, model.conv1.bias, model.conv2.weight, model.conv2.bias]

    @staticmethod
    @torch.no_grad()
    def mean(w):
        return w.mean(tuple(range(2, w.dim())), keepdim=True)

    @torch.no_grad()
    def project_gradients(self):
        """Take out of the gradients what would change a sum or the picture's own kernels and biases."""
        for w, n in self.held:
            if w.grad is not None:
                w.grad[:, :n].sub_(self.mean(w.grad[:, :n]))
        for p in self.stem:
            p.grad[0].zero_()

    @torch.no_grad()
    def restore(self):
        """Undo what rounding and an optimiser's step changed all the same."""
        for (w, n), mean in zip(self.held, self.means):
            if w.grad is not None:
                w[:, :n].sub_(self.mean(w[:, :n]) - mean)


def orthogonal(matrices, steps=5):
    """Matrices (B, m, n) -> nearly the closest ones whose singular values are all 1, by Newton-Schulz.

    The quintic of K. Jordan's Muon: singular values end between 0.7 and 1.2, zeros stay zero.
    """
    x = matrices / (matrices.flatten(1).norm(dim=1)[:, None, None] + 1e-12)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are orthogonalised: a kernel (out, in, ...) moves as a matrix (out, in * ...) by
    `lr` in every direction alike, so that directions with small gradients learn as fast as the others.

    What the gradients leave alone (sums of kernels, rows) the steps leave alone too.
    """

    def __init__(self, params, lr, momentum=0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            alike = {}  # kernels of one shape are orthogonalised together
            for p in group["params"]:
                if p.grad is not None:
                    average = self.state[p].setdefault("average", torch.zeros_like(p))
                    average.lerp_(p.grad, 1 - group["momentum"])
                    alike.setdefault(p.shape, []).append((p, p.grad.lerp(average, group["momentum"])))
            for shape, pairs in alike.items():
                steps = orthogonal(torch.stack([g.flatten(1) for _, g in pairs]))
                factor = max(1.0, shape[0] / shape[1:].numel()) ** 0.5
                for (p, _), update in zip(pairs, steps):
                    p.sub_(update.view(shape), alpha=group["lr"] * factor)


def optimisers(model, lr, lr_kernels):
    """[Adam, Muon] for a model, their first rates in each group's "rate".

    Muon moves the kernels of L2 to L34, Adam the rest: scales, the thresholds under a ReLU, L1 and L35, and
    ten times slower the shifts, whose steps are jumps of brightness. Biases in front of a batch norm would
    only repeat its shift and stay.
    """
    kernels, groups = [], {"fast": [], "slow": [], "stem": []}
    for name, p in model.named_parameters():
        if p.dim() > 1 and min(p.shape[:2]) > 1:
            kernels.append(p)
        elif name.endswith("conv.bias"):
            continue
        elif name.endswith("bn.weight") or name.endswith(("first.bn.bias", "conv31.bn.bias")):
            groups["fast"].append(p)
        else:
            groups["stem" if name == "conv1.weight" else "slow"].append(p)
    rates = {"fast": lr, "stem": lr, "slow": 0.1 * lr}
    adam = torch.optim.Adam([{"params": groups[k], "rate": rates[k]} for k in groups], lr=lr,
                            betas=(0.9, 0.99), fused=True)
    return [adam, Muon([{"params": kernels, "rate": lr_kernels}], lr=lr_kernels)]
