"""PSNR and SSIM against values computed by hand and by an independent implementation in numpy."""

import math

import numpy as np
import pytest
import torch

from dblr_fast.evaluation import psnr, ssim


def ssim_by_loops(a, b, data_range=1.0):
    """The definition, one window at a time."""
    x = np.arange(11) - 5
    g = np.exp(-(x[:, None] ** 2 + x[None] ** 2) / (2 * 1.5 ** 2))
    g /= g.sum()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            p, q = a[i:i + 11, j:j + 11], b[i:i + 11, j:j + 11]
            mp, mq = (g * p).sum(), (g * q).sum()
            vp, vq = (g * (p - mp) ** 2).sum(), (g * (q - mq) ** 2).sum()
            cov = (g * (p - mp) * (q - mq)).sum()
            values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp ** 2 + mq ** 2 + c1) * (vp + vq + c2)))
    return np.mean(values)


def pictures(*shape, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.random(shape)
    return a, np.clip(a + 0.1 * rng.standard_normal(shape), 0, 1)


def test_psnr_of_a_known_error():
    a = torch.zeros(2, 3, 8, 9)
    b = a.clone()
    b[0] += 0.1
    b[1] += 0.01
    assert torch.allclose(psnr(a, b), torch.tensor([[20.0] * 3, [40.0] * 3], dtype=torch.float64), atol=1e-5)


def test_psnr_of_bytes_equals_psnr_of_luma():
    a, b = (np.rint(p * 255).astype(np.uint8) for p in pictures(20, 30))
    expected = 10 * math.log10(255 ** 2 / np.mean((a.astype(float) - b.astype(float)) ** 2))
    assert float(psnr(a, b, 255)) == pytest.approx(expected, abs=1e-9)
    assert float(psnr(a / 255, b / 255)) == pytest.approx(expected, abs=1e-9)


def test_equal_pictures():
    a = torch.rand(3, 16, 17)
    assert torch.isinf(psnr(a, a)).all()
    assert torch.allclose(ssim(a, a), torch.ones(3, dtype=torch.float64))


def test_float64_accumulation_of_a_tiny_error():
    # 1e-6 on a bright picture: a float32 mean over a million squares would be off in the third digit.
    a = torch.full((1000, 1000), 0.5, dtype=torch.float64)
    assert float(psnr(a + 1e-6, a)) == pytest.approx(120.0, abs=1e-6)


@pytest.mark.parametrize("shape", [(11, 11), (13, 20), (24, 17)])
@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_ssim_against_the_definition(shape, data_range):
    a, b = (p * data_range for p in pictures(*shape, seed=shape[1]))
    assert float(ssim(a, b, data_range)) == pytest.approx(ssim_by_loops(a, b, data_range), abs=1e-10)


def test_ssim_against_a_constant_pair():
    # No structure: only the luminance term is left.
    a, b = torch.full((16, 16), 0.2), torch.full((16, 16), 0.8)
    c1 = 0.01 ** 2
    expected = (2 * 0.2 * 0.8 + c1) / (0.2 ** 2 + 0.8 ** 2 + c1)
    assert float(ssim(a, b)) == pytest.approx(expected, abs=1e-6)


def test_ssim_keeps_leading_dimensions():
    a, b = pictures(2, 3, 14, 15)
    values = ssim(a, b)
    assert values.shape == (2, 3)
    assert float(values[1, 2]) == pytest.approx(float(ssim(a[1, 2], b[1, 2])), abs=1e-12)


def test_against_torchmetrics():
    try:
        from torchmetrics.functional.image import (
            peak_signal_noise_ratio,
            structural_similarity_index_measure,
        )
    except ImportError:
        print("torchmetrics is not installed (pip install torchmetrics): checked against loops alone")
        return
    a, b = (torch.from_numpy(p)[None, None] for p in pictures(40, 53, seed=5))
    assert float(psnr(a, b)) == pytest.approx(float(peak_signal_noise_ratio(a, b, data_range=1.0)), abs=1e-5)
    # torchmetrics pads by reflection; the valid region is what is left 5 pixels inside.
    _, full = structural_similarity_index_measure(a, b, sigma=1.5, data_range=1.0, return_full_image=True)
    assert float(ssim(a, b)) == pytest.approx(float(full[..., 5:-5, 5:-5].mean()), abs=1e-9)


@pytest.mark.parametrize("function", [psnr, ssim])
def test_refusals(function):
    with pytest.raises(ValueError, match="one shape"):
        function(torch.zeros(16, 16), torch.zeros(16, 17))
    with pytest.raises(ValueError, match="expected pictures"):
        function(torch.zeros(16), torch.zeros(16))
    with pytest.raises(ValueError, match="data_range"):
        function(torch.zeros(16, 16), torch.zeros(16, 16), data_range=0)


def test_ssim_refuses_pictures_smaller_than_its_window():
    with pytest.raises(ValueError, match="11x11"):
        ssim(torch.zeros(10, 16), torch.zeros(10, 16))
