"""Metrics of restored pictures against sharp ones."""

from .metrics import psnr, ssim

__all__ = ["psnr", "ssim"]
