"""Specification of DBLRNet and DBLRGAN in plain PyTorch.

Short and obviously right rather than fast. Everything here works in float32 and float64, on any
device, and imports torch alone. The product (``dblr_fast``) is tested against it and never imports it.

Source: Zhang et al., "Adversarial Spatio-Temporal Learning for Video Deblurring" (Tables I and II,
equations 1 to 5).
"""

from .gan import Discriminator
from .losses import (
    adversarial_loss_discriminator,
    adversarial_loss_generator,
    combined_loss,
    content_loss,
)
from .model import DBLRNet
from .ops import conv_bn_act, reconstruct, residual_block, stem

__all__ = [
    "DBLRNet",
    "Discriminator",
    "adversarial_loss_discriminator",
    "adversarial_loss_generator",
    "combined_loss",
    "content_loss",
    "conv_bn_act",
    "reconstruct",
    "residual_block",
    "stem",
]
