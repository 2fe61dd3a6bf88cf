"""PSNR and SSIM of luma pictures, accumulated in float64."""

import torch
import torch.nn.functional as F

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03


def _pair(a, b, smallest=1):
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    if a.shape != b.shape:
        raise ValueError(f"the two pictures must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}: "
                         "crop or resize one of them")
    if a.dim() < 2 or min(a.shape[-2:]) < smallest or a.numel() == 0:
        raise ValueError(f"expected pictures (..., H, W) of at least {smallest}x{smallest} pixels, "
                         f"got shape {tuple(a.shape)}")
    if a.device != b.device:
        raise ValueError(f"the two pictures must be on one device, got {a.device} and {b.device}: "
                         "move one of them")
    return a.double(), b.double()


def _positive(data_range):
    if not data_range > 0:
        raise ValueError(f"data_range must be positive, got {data_range}: "
                         "give 1.0 for luma in [0, 1], 255 for bytes")
    return float(data_range)


def psnr(a, b, data_range=1.0):
    """Peak signal-to-noise ratio in dB of each picture, 10 log10(range^2 / mean squared error).

    a, b: (..., H, W) tensors or arrays of one shape, any dtype; nothing is clamped or rounded here.
    data_range: the peak, 1.0 for luma in [0, 1], 255 for bytes.
    Returns float64 (...): one value a picture, infinity where the two are equal. Average over pictures, as
    published tables do, not over squared errors. Raises ValueError on unequal or too few dimensions.
    """
    peak = _positive(data_range)
    a, b = _pair(a, b)
    return 10 * torch.log10(peak ** 2 / ((a - b) ** 2).mean((-2, -1)))


def ssim(a, b, data_range=1.0):
    """Structural similarity of each picture (Wang et al., 2004): Gaussian window 11x11, sigma 1.5, K1 = 0.01,
    K2 = 0.03, population (not sample) covariances.

    a, b: (..., H, W) of one shape, H and W at least 11. The mean is taken over the valid region, where the
    window lies wholly inside the picture (5 pixels less on each side), as in the authors' code; nothing is
    padded and nothing downscaled. Returns float64 (...), at most 1. Raises ValueError on unequal shapes.
    """
    peak = _positive(data_range)
    a, b = _pair(a, b, WINDOW)
    shape, size = a.shape[:-2], a.shape[-2:]
    a, b = a.reshape(-1, 1, *size), b.reshape(-1, 1, *size)
    x = torch.arange(WINDOW, dtype=torch.float64, device=a.device) - WINDOW // 2
    kernel = torch.exp(-x ** 2 / (2 * SIGMA ** 2))
    kernel = kernel / kernel.sum()

    def blur(picture):
        return F.conv2d(F.conv2d(picture, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))

    c1, c2 = (K1 * peak) ** 2, (K2 * peak) ** 2
    mean_a, mean_b = blur(a), blur(b)
    var_a = blur(a * a) - mean_a ** 2
    var_b = blur(b * b) - mean_b ** 2
    covariance = blur(a * b) - mean_a * mean_b
    value = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)
             / ((mean_a ** 2 + mean_b ** 2 + c1) * (var_a + var_b + c2)))
    return value.mean((-3, -2, -1)).reshape(shape)
