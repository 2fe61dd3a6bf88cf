"""The discriminator of Table II against the specification."""

import pytest
import torch
from tolerance import assert_close_as_eager
from torch import nn

import python_ref
from dblr_fast import gan
from dblr_fast.gan import Discriminator

SMALL = {"hidden": 12, "pool": 2}
GROUPS = ((2, 4), (3, 8), (4, 16), (5, 32))  # width 4


def small_pair():
    torch.manual_seed(0)
    ours, specified = Discriminator(width=4, **SMALL), python_ref.Discriminator(groups=GROUPS, **SMALL)
    return ours, specified


def test_state_dicts_are_interchangeable_both_ways():
    ours, specified = small_pair()
    specified.load_state_dict(ours.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), specified.state_dict().values(),
                                                 strict=True))
    for p in specified.parameters():
        nn.init.normal_(p)
    ours.load_state_dict(specified.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), specified.parameters(), strict=True))
    with torch.device("meta"):
        full, table = Discriminator(), python_ref.Discriminator()
    assert {k: v.shape for k, v in full.state_dict().items()} == {k: v.shape for k, v in table.state_dict().items()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fused_from", [0, 2**40], ids=["fused", "plain"])
def test_values_and_gradients(training, fused_from, monkeypatch):
    monkeypatch.setattr(gan, "FUSED_FROM", fused_from)
    ours, specified = small_pair()
    specified.load_state_dict(ours.state_dict())
    x = torch.rand(3, 1, 32, 35, generator=torch.Generator().manual_seed(3))

    def run(module, dtype):
        module = module.to(dtype).train(training)
        module.zero_grad()
        frames = x.to(dtype).clone().requires_grad_()
        logits = module(frames)
        logits.square().sum().backward()
        return {"logits": logits.detach(), "dx": frames.grad,
                **{name: p.grad for name, p in module.named_parameters()}}

    before = {name: t.clone() for name, t in specified.state_dict().items()}
    mine, eager = run(ours, torch.float32), run(specified, torch.float32)
    specified.load_state_dict(before)
    reference = run(specified, torch.float64)
    scale = max(float(g.abs().max()) for name, g in reference.items() if name not in ("logits", "dx"))
    for name, value in mine.items():  # 14 convolutions forward, and 14 more backward
        assert_close_as_eager(name, value, eager[name], reference[name], None if name == "logits" else scale,
                              winograd=14 if name == "logits" else 28)


def test_it_is_table_ii():
    with torch.device("meta"):
        network = Discriminator()
        convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
        assert [c.out_channels for c in convolutions] == [64] * 2 + [128] * 3 + [256] * 4 + [512] * 5
        assert len([m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]) == 14
        assert [m.out_features for m in network.modules() if isinstance(m, nn.Linear)] == [4096, 2]
        assert network(torch.rand(4, 1, 128, 128)).shape == (4, 2)


def test_what_does_not_fit_is_refused():
    network, _ = small_pair()
    for shape in ((1, 1, 15, 40), (1, 2, 32, 32), (1, 32, 32)):
        with pytest.raises(ValueError, match="Discriminator: wanted an input"):
            network(torch.zeros(shape))
    assert network.eval()(torch.zeros(1, 1, 16, 16)).shape == (1, 2)
    for wrong in ({"width": 0}, {"hidden": 1.5}, {"pool": -1}):
        with pytest.raises(ValueError, match="must be a whole number of at least 1"):
            Discriminator(**wrong)


def test_frozen_weights_pass_the_gradient_on():
    """As in the generator's step: the gradient of the frames is that of the specification, the weights get none."""
    ours, specified = small_pair()
    specified.load_state_dict(ours.state_dict())
    x = torch.rand(2, 1, 24, 24, generator=torch.Generator().manual_seed(4))

    def gradient(module, dtype):
        module = module.to(dtype).train().requires_grad_(False)
        frames = x.to(dtype).clone().requires_grad_()
        module(frames)[:, 1].sum().backward()
        assert all(p.grad is None for p in module.parameters())
        return frames.grad

    before = {name: t.clone() for name, t in specified.state_dict().items()}
    mine, eager = gradient(ours, torch.float32), gradient(specified, torch.float32)
    specified.load_state_dict(before)
    assert_close_as_eager("dx", mine, eager, gradient(specified, torch.float64), winograd=28)


@pytest.mark.parametrize("fused_from", [0, 2**40], ids=["fused", "plain"])
def test_running_statistics_are_the_specifications(fused_from, monkeypatch):
    monkeypatch.setattr(gan, "FUSED_FROM", fused_from)
    ours, specified = small_pair()
    specified.load_state_dict(ours.state_dict())
    exact = python_ref.Discriminator(groups=GROUPS, **SMALL).double()
    exact.load_state_dict(ours.state_dict())
    x = torch.rand(2, 1, 24, 24, generator=torch.Generator().manual_seed(5))
    for module, dtype in ((ours, torch.float32), (specified, torch.float32), (exact, torch.float64)):
        module.train()(x.to(dtype))
    for (name, mine), eager, reference in zip(ours.named_buffers(), specified.buffers(), exact.buffers(), strict=True):
        if name.endswith("num_batches_tracked"):
            assert int(mine) == int(reference) == 1
        else:
            assert_close_as_eager(name, mine, eager, reference, winograd=14)
