"""Starting points for training: the paper's Gaussian weights, and a network that is the identity.

Both functions act in place on any module whose attributes are named as in `dblr_fast.DBLRNet`: conv1, conv2,
blocks[i].first and .second, conv31, conv32 (each with .conv and .bn), conv33, conv34, conv35.
"""

import torch
from torch import nn

PAPER_STD = 0.01


def _convolutions(model):
    return [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))]


def _batch_norms(model):
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


@torch.no_grad()
def paper_(model):
    """Gaussian weights of mean 0 and standard deviation 0.01, zero biases (paper, Section IV-B), in place.

    Batch norms get gamma 1, beta 0 and fresh running statistics. Returns the model.
    """
    for conv in _convolutions(model):
        conv.weight.normal_(0.0, PAPER_STD)
        if conv.bias is not None:
            conv.bias.zero_()
    for bn in _batch_norms(model):
        bn.reset_parameters()
    return model


@torch.no_grad()
def identity_(model, std=None):
    """Make the network return the centre frame of its window, exactly but for rounding, for luma >= 0; in place.

    A delta carries the centre frame through channel 0 of L1 and L2 (luma is not negative, so ReLU lets it
    pass), gamma = 0 in the last batch norm of every residual block and of L32 keeps all blocks silent, and
    a delta carries channel 0 through L33, L34 and L35. With `tail_skip` L32 adds L30's output to L2's, which
    are equal at the start, so L33 halves it (a power of two, hence exact).
    Everything else is Gaussian, so that all features are there to be learned from. With `std=None` the
    standard deviation is sqrt(2 / fan_in) (He) up to L32, which keeps features at the scale of the picture,
    and the paper's 0.01 in L33 and L34, whose many channels would otherwise make the first steps of L35 far
    too long; a number sets one standard deviation for all. L35 is zero outside its delta.
    Works in training and evaluation mode, for every variant and window length. Returns the model.
    """
    tail = (model.conv33, model.conv34, model.conv35)
    for conv in _convolutions(model):
        he = (2.0 / conv.weight[0].numel()) ** 0.5
        default = PAPER_STD if any(conv is last for last in tail) else he
        conv.weight.normal_(0.0, default if std is None else std)
        if conv.bias is not None:
            conv.bias.zero_()
    for bn in _batch_norms(model):
        bn.reset_parameters()
    for last in [block.second for block in model.blocks] + [model.conv32]:
        last.bn.weight.zero_()

    conv1, conv2 = model.conv1.weight, model.conv2.weight
    conv1[0].zero_()
    conv2[0].zero_()
    if conv1.dim() == 5:
        conv1[0, 0, 1, 1, 1] = 1.0
        conv2[0, 0, conv2.shape[2] // 2, 1, 1] = 1.0
    else:
        conv1[0, conv1.shape[1] // 2, 1, 1] = 1.0
        conv2[0, 0, 1, 1] = 1.0
    for conv in tail:
        conv.weight[0].zero_()
        conv.weight[0, 0, 1, 1] = 1.0
    if model.tail_skip:
        model.conv33.weight[0, 0, 1, 1] = 0.5
    return model
