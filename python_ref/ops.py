"""The four operations that DBLRNet is made of, as plain functions (Table I).

Shapes: N batch, T frames of the window, H x W picture, C channels. All tensors of one call share one
dtype and one device. Spatial padding is 1 with zeros in every layer, temporal padding is 0.
"""

import torch.nn.functional as F


def stem(x, w1, b1, w2, b2):
    """L1 and L2: two convolutions, each with bias and ReLU, that fold the window into one map.

    x: (N, T, H, W) luma. 5-D weights are 3-D convolutions (Table I; eq. 1): w1 (16, 1, 3, 3, 3) and
    w2 (64, 16, T-2, 3, 3), so that time collapses T -> T-2 -> 1. 4-D weights are the 2-D convolutions of
    DBLRNet (single) and (multi) (Section IV-C): w1 (16, T, 3, 3), w2 (64, 16, 3, 3), frames as channels.
    Returns (N, 64, H, W).
    """
    if w1.dim() == 5:
        y = F.relu(F.conv3d(x.unsqueeze(1), w1, b1, padding=(0, 1, 1)))
        return F.relu(F.conv3d(y, w2, b2, padding=(0, 1, 1))).squeeze(2)
    y = F.relu(F.conv2d(x, w1, b1, padding=1))
    return F.relu(F.conv2d(y, w2, b2, padding=1))


def conv_bn_act(x, weight, bias, gamma, beta, running_mean, running_var, residual=None,
                relu=False, training=False, momentum=0.1, eps=1e-5):
    """One of L3 to L32: 3x3 convolution, batch norm, optional ReLU, optional residual addition.

    x: (N, Cin, H, W); weight (Cout, Cin, 3, 3); the other parameters (Cout,). The residual is added
    after the ReLU, and nothing follows the addition (Table I has no ReLU after a skip connection).
    With training=True batch statistics normalise and running_mean and running_var are updated in place.
    """
    y = F.conv2d(x, weight, bias, padding=1)
    y = F.batch_norm(y, running_mean, running_var, gamma, beta, training, momentum, eps)
    if relu:
        y = F.relu(y)
    return y if residual is None else y + residual


def residual_block(x, first, second, training=False, momentum=0.1, eps=1e-5):
    """L(X) and L(X+1) of Table I: x + BN(conv(ReLU(BN(conv(x))))).

    first, second: (weight, bias, gamma, beta, running_mean, running_var) of the two convolutions.
    """
    y = conv_bn_act(x, *first, relu=True, training=training, momentum=momentum, eps=eps)
    return conv_bn_act(y, *second, residual=x, training=training, momentum=momentum, eps=eps)


def reconstruct(x, w1, b1, w2, b2, w3, b3):
    """L33, L34 and L35: (N, 64, H, W) -> 256 -> 256 -> (N, 1, H, W); ReLU after the first two."""
    y = F.relu(F.conv2d(x, w1, b1, padding=1))
    y = F.relu(F.conv2d(y, w2, b2, padding=1))
    return F.conv2d(y, w3, b3, padding=1)
