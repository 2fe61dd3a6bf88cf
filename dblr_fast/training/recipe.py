"""What makes a short training from `identity_` useful: loss, statistics, learning rates, brightness held."""

import torch
from torch import nn


def charbonnier(restored, sharp, epsilon, border=12):
    """Mean of sqrt(d^2 + epsilon^2) of each window: quadratic below epsilon, the absolute error above.

    restored, sharp: (N, 1, H, W); returns (N,). The outer `border` pixels, where zeros and light from outside
    the crop reach in, count a twentieth: in a crop they are many, in a picture few.
    """
    error = torch.sqrt((restored - sharp) ** 2 + epsilon ** 2)
    weight = torch.full_like(error[:1], 0.05)
    weight[..., border:-border, border:-border] = 1.0
    return (error * weight).sum((1, 2, 3)) / weight.sum()


@torch.no_grad()
def calibrate(model, batches):
    """Set the running statistics of every batch norm to their means over `batches` of windows (N, T, H, W),
    and put the model into evaluation mode, in which it is then trained.

    With the statistics held a picture is treated alike in training and in use, whatever else is in the
    batch: normalising each small batch by itself would harm sharp pictures first.
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
        m.running_mean.copy_(total[0] / count)
        m.running_var.copy_(total[1] / count)
    model.eval()


def learning_rates(model):
    """{parameter name: factor of the learning rate}. Gammas start at zero and learn faster; L1, L2, L33 and
    L34, through which the identity passes, slower than the body; biases and shifts, whose steps are jumps of
    brightness, slowest."""
    scales = {}
    for name, _ in model.named_parameters():
        if name.endswith("bias"):
            scales[name] = 0.05
        elif ".bn." in name:
            scales[name] = 4.0
        else:
            scales[name] = 0.5 if name.split(".")[0] in ("conv1", "conv2", "conv33", "conv34") else 1.0
    return scales


class FlatResponse:
    """Holds the sum of every kernel where it is, so that filters change what they do to detail alone.

    All pixels agree on brightness, so without this every Adam step is first of all a jump of brightness
    (15 times the rest, measured) and the next step's gradient mostly mends it. Blur does not change flat
    regions; biases, scales and shifts stay free.
    """

    def __init__(self, model):
        self.weights = [m.weight for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))]
        self.means = [self.mean(w.detach()) for w in self.weights]

    @staticmethod
    @torch.no_grad()
    def clear(model):
        """Make what the residual branches add free of brightness: kernels that sum to zero."""
        for last in [block.second for block in model.blocks] + [model.conv32]:
            last.conv.weight.sub_(FlatResponse.mean(last.conv.weight))

    @staticmethod
    def mean(w):
        return w.mean(tuple(range(2, w.dim())), keepdim=True)

    @torch.no_grad()
    def project_gradients(self):
        """Take out of the gradients what would change a sum."""
        for w in self.weights:
            if w.grad is not None:
                w.grad.sub_(self.mean(w.grad))

    @torch.no_grad()
    def restore(self):
        """Undo what an optimiser's step changed all the same."""
        for w, mean in zip(self.weights, self.means):
            w.sub_(self.mean(w) - mean)
