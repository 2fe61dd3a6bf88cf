"""The losses of equations 2 to 5 against the specification in float64, and where logarithms would break."""

import math

import pytest
import torch
from tolerance import assert_close_as_eager

import python_ref
from dblr_fast.training.losses import adversarial_loss, combined_loss, content_loss, discriminator_loss

LOGITS = {"small": 1.0, "sure": 30.0, "very sure": 300.0}


def pair(scale, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(6, 2, generator=generator, dtype=torch.float64) * scale).to(dtype) for _ in range(2)]


def value_and_gradients(function, tensors):
    tensors = [t.clone().requires_grad_() for t in tensors]
    value = function(*tensors)
    return value, torch.autograd.grad(value, tensors)


CASES = {
    "discriminator": (discriminator_loss, python_ref.adversarial_loss_discriminator, 2),
    "saturating": (adversarial_loss, python_ref.adversarial_loss_generator, 1),
    "non-saturating": (lambda x: adversarial_loss(x, saturating=False),
                       lambda x: python_ref.adversarial_loss_generator(x, saturating=False), 1)}


@pytest.mark.parametrize("scale", LOGITS.values(), ids=LOGITS)
@pytest.mark.parametrize("case", CASES)
def test_adversarial_losses_are_the_specification(case, scale):
    ours, specified, count = CASES[case]
    inputs = pair(scale)[:count]
    want, want_gradients = value_and_gradients(specified, inputs)
    single = [t.float() for t in inputs]
    got, got_gradients = value_and_gradients(ours, single)
    eager, eager_gradients = value_and_gradients(specified, single)
    # float32 inputs are rounded; the reference is taken at the same ones
    want, want_gradients = value_and_gradients(specified, [t.double() for t in single])
    assert_close_as_eager(case, got, eager, want)
    for mine, theirs, reference in zip(got_gradients, eager_gradients, want_gradients, strict=True):
        assert_close_as_eager(f"gradient of {case}", mine, theirs, reference, scale=1.0)
    wide, _ = value_and_gradients(ours, inputs)
    exact, _ = value_and_gradients(specified, inputs)
    assert_close_as_eager(f"{case} in float64", wide, exact, exact)


def test_content_loss_is_the_specification():
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.rand(2, 1, 17, 19, generator=generator) for _ in range(2))
    got, got_gradients = value_and_gradients(content_loss, [a, b])
    eager, eager_gradients = value_and_gradients(python_ref.content_loss, [a, b])
    want, want_gradients = value_and_gradients(python_ref.content_loss, [a.double(), b.double()])
    assert_close_as_eager("content", got, eager, want)
    for mine, theirs, reference in zip(got_gradients, eager_gradients, want_gradients, strict=True):
        assert_close_as_eager("gradient of content", mine, theirs, reference)


@pytest.mark.parametrize("alpha", [0.0, 2e-4, 0.1])
def test_combined_loss_is_the_specification(alpha):
    restored, sharp = torch.rand(2, 2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    logits = pair(2.0)[0]
    want = python_ref.combined_loss(restored, sharp, logits, alpha)
    got = combined_loss(content_loss(restored, sharp), adversarial_loss(logits), alpha)
    assert_close_as_eager("combined", got, want, want)
    assert alpha or torch.equal(got, content_loss(restored, sharp))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1e3, 6e4])
@pytest.mark.parametrize("case", CASES)
def test_extreme_logits_stay_finite(case, size, dtype):
    ours, _, count = CASES[case]
    for signs in ([1, -1], [-1, 1]):
        inputs = [torch.tensor([[size, -size]], dtype=dtype) * s for s in signs][:count]
        value, gradients = value_and_gradients(ours, inputs)
        assert value.dtype == torch.float32 and torch.isfinite(value)
        assert all(torch.isfinite(g).all() for g in gradients)


def test_values_known_by_hand():
    undecided = torch.zeros(3, 2)
    assert discriminator_loss(undecided, undecided).item() == pytest.approx(2 * math.log(2), rel=1e-6)
    assert adversarial_loss(undecided).item() == pytest.approx(-math.log(2), rel=1e-6)
    assert adversarial_loss(undecided, saturating=False).item() == pytest.approx(math.log(2), rel=1e-6)
    real, restored = torch.tensor([[-9.0, 9.0]]), torch.tensor([[9.0, -9.0]])  # class 1 is "real"
    assert discriminator_loss(real, restored) < 1e-6 < 30 < discriminator_loss(restored, real)
    # where D is sure that a frame was restored, eq. 4 hardly moves G and the other form does
    sure = restored.clone().requires_grad_()
    flat, = torch.autograd.grad(adversarial_loss(sure), sure)
    steep, = torch.autograd.grad(adversarial_loss(sure, saturating=False), sure)
    assert flat.abs().max() < 1e-6 < 0.9 < steep.abs().max()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="alpha must lie in 0..0.1"):
        combined_loss(torch.tensor(0.0), torch.tensor(0.0), 0.2)
    with pytest.raises(ValueError, match="one shape"):
        content_loss(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))
    for bad in (torch.zeros(3), torch.zeros(3, 3), torch.zeros(0, 2)):
        with pytest.raises(ValueError, match=r"logits \(N, 2\)"):
            adversarial_loss(bad)
        with pytest.raises(ValueError, match=r"logits \(N, 2\)"):
            discriminator_loss(torch.zeros(1, 2), bad)
