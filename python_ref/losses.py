"""Losses of DBLRNet and DBLRGAN (equations 2 to 5).

D(h), the probability that h is a real sharp frame, is the second entry of the two-way softmax over the
discriminator's logits (N, 2). All logarithms are taken of the softmax directly (log-sum-exp), so that
none is ever log 0.
"""

import torch.nn.functional as F


def content_loss(restored, sharp):
    """Eq. 3: mean squared error over all pixels (and over the batch). Any equal shapes."""
    return ((sharp - restored) ** 2).mean()


def adversarial_loss_discriminator(logits_real, logits_restored):
    """What D minimises: -[log D(h) + log(1 - D(G(h^)))], the negative of eq. 2, averaged over the batch."""
    real = F.log_softmax(logits_real, dim=1)[:, 1]
    fake = F.log_softmax(logits_restored, dim=1)[:, 0]
    return -(real.mean() + fake.mean())


def adversarial_loss_generator(logits_restored, saturating=True):
    """Eq. 4: log(1 - D(G(I))), averaged over the batch.

    saturating=False gives -log D(G(I)) instead, which has the same fixed point and stronger gradients
    early in training.
    """
    log_probability = F.log_softmax(logits_restored, dim=1)
    return log_probability[:, 0].mean() if saturating else -log_probability[:, 1].mean()


def combined_loss(restored, sharp, logits_restored, alpha=2e-4, saturating=True):
    """Eq. 5: content + alpha * adversarial; the paper's alpha is 0.0002, and 0 gives DBLRNet."""
    if not 0 <= alpha <= 0.1:
        raise ValueError(f"alpha must lie in 0..0.1 (Section III-C), got {alpha}")
    return content_loss(restored, sharp) + alpha * adversarial_loss_generator(logits_restored, saturating)
