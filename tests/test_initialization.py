"""identity_ makes every network the identity on its centre frame; paper_ is the paper's Gaussian."""

import pytest
import torch

import dblr_fast
import python_ref
from dblr_fast.initialization import identity_, paper_

SHAPES = [("3d", 5), ("3d", 3), ("3d", 9), ("multi", 5), ("multi", 7), ("single", 1)]


def network(module, variant, frames, tail_skip):
    torch.manual_seed(frames)
    return module.DBLRNet(frames=frames, variant=variant, tail_skip=tail_skip, width=16, blocks=3)


@pytest.mark.parametrize("variant, frames", SHAPES)
@pytest.mark.parametrize("tail_skip", [True, False])
@pytest.mark.parametrize("std", [None, 0.01])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("module", [python_ref, dblr_fast])
def test_identity_is_exact(variant, frames, tail_skip, std, training, module):
    model = identity_(network(module, variant, frames, tail_skip), std).train(training)
    x = torch.rand(2, frames, 13, 18)
    x[:, :, :2, :3] = 0
    x[:, :, -2:] = 1
    with dblr_fast.use_backend("torch"):
        y = model(x)
        assert torch.equal(y, x[:, frames // 2:frames // 2 + 1])
        with torch.no_grad():
            assert torch.equal(model(x), x[:, frames // 2:frames // 2 + 1])


def test_identity_learns_everywhere_at_once_or_after_its_gammas():
    model = identity_(network(python_ref, "3d", 5, True))
    x = torch.rand(2, 5, 16, 16)
    (model(x) - x[:, 1:2]).abs().mean().backward()
    for name in ("conv1", "conv2", "conv33", "conv34", "conv35"):
        assert getattr(model, name).weight.grad.abs().max() > 0
    for last in [block.second for block in model.blocks] + [model.conv32]:
        assert last.bn.weight.grad.abs().max() > 0
        last.bn.weight.data.fill_(0.1)
    model.zero_grad()
    (model(x) - x[:, 1:2]).abs().mean().backward()
    # Biases before a batch norm that uses the batch's own mean have no gradient but rounding.
    assert all(p.grad.abs().max() > 0 for p in model.parameters())


def test_paper_is_gaussian():
    torch.manual_seed(0)
    model = paper_(python_ref.DBLRNet())
    for name, p in model.named_parameters():
        if p.dim() > 1 and p.numel() > 10_000:
            assert float(p.detach().std()) == pytest.approx(0.01, rel=0.05)
            assert abs(float(p.detach().mean())) < 5e-4
        elif name.endswith("bn.weight"):
            assert torch.equal(p, torch.ones_like(p))
        elif name.endswith("bias"):
            assert torch.equal(p, torch.zeros_like(p))
