"""Losses of DBLRNet and DBLRGAN (equations 2 to 5).

D(h), the probability that h is a real sharp frame, is the second entry of the two-way softmax over the
discriminator's logits (N, 2). Logarithms are taken of the softmax directly (log-sum-exp), in float32 at least:
none is ever log 0, and gradients stay finite however sure the discriminator is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

REAL, RESTORED = 1, 0  # columns of the logits


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check(name: str, logits: Tensor) -> None:
    if logits.dim() != 2 or logits.shape[1] != 2 or logits.shape[0] == 0:
        raise ValueError(f"{name} must be logits (N, 2) of a discriminator; got shape {tuple(logits.shape)}")


def content_loss(restored: Tensor, sharp: Tensor) -> Tensor:
    """Eq. 3: mean squared error over all pixels and the batch.

    restored, sharp: one shape, luma in [0, 1]. Returns a scalar, float32 or wider. Raises ValueError where the
    shapes differ (broadcasting would compare the wrong pixels).
    """
    if restored.shape != sharp.shape:
        raise ValueError(f"restored and sharp must have one shape; got {tuple(restored.shape)} and "
                         f"{tuple(sharp.shape)}")
    return (_wide(restored) - _wide(sharp)).square().mean()


def discriminator_loss(logits_real: Tensor, logits_restored: Tensor) -> Tensor:
    """What D minimises: -[log D(h) + log(1 - D(G(h^)))], the negative of eq. 2, averaged over the batch.

    logits_real, logits_restored: (N, 2), of real sharp frames and of restored ones. Returns a scalar; 2 log 2
    where D cannot tell them apart. Raises ValueError for other shapes.
    """
    _check("logits_real", logits_real)
    _check("logits_restored", logits_restored)
    real = F.log_softmax(_wide(logits_real), dim=1)[:, REAL]
    restored = F.log_softmax(_wide(logits_restored), dim=1)[:, RESTORED]
    return -(real.mean() + restored.mean())


def adversarial_loss(logits_restored: Tensor, saturating: bool = True) -> Tensor:
    """Eq. 4, what G minimises: log(1 - D(G(I))), averaged over the batch.

    logits_restored: (N, 2). saturating=False gives -log D(G(I)) instead: the same fixed point, and a gradient
    that does not vanish where D is sure that a frame was restored. Returns a scalar. Raises ValueError for
    other shapes.
    """
    _check("logits_restored", logits_restored)
    log_probability = F.log_softmax(_wide(logits_restored), dim=1)
    return log_probability[:, RESTORED].mean() if saturating else -log_probability[:, REAL].mean()


def combined_loss(content: Tensor, adversarial: Tensor, alpha: float = 2e-4) -> Tensor:
    """Eq. 5: content + alpha * adversarial. alpha in 0..0.1, the paper's is 0.0002; 0 gives DBLRNet. Raises
    ValueError for an alpha out of that range."""
    if not 0 <= alpha <= 0.1:
        raise ValueError(f"alpha must lie in 0..0.1 (Section III-C); got {alpha}")
    return content + alpha * adversarial
