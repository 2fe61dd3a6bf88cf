"""dblr_fast.DBLRNet as a drop-in for training code: parity with the specification, and torch's habits."""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from cases import BACKENDS
from tolerance import ORDERS, assert_close_as_eager, ordered_model, orders, outputs, turned
from torch import nn

import dblr_fast
import python_ref

SMALL = dict(width=8, blocks=2)
WIDE = dict(width=32, blocks=2)  # enough values a tensor for its largest error to be a fair measure
VARIANTS = [
    dict(), dict(tail_skip=False), dict(frames=3), dict(frames=7), dict(variant="multi"),
    dict(variant="single", frames=1), dict(variant="multi", frames=3, tail_skip=False),
]


def randomise(model, seed=0):
    """Weights and running statistics away from their starting values, at a scale that keeps maps near 1."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, (nn.Conv2d, nn.Conv3d)):
                fan_in = m.weight[0].numel()
                m.weight.copy_(torch.randn(m.weight.shape, generator=g) * (2 / fan_in) ** 0.5)
                m.bias.copy_(torch.randn(m.bias.shape, generator=g) * 0.1)
            elif isinstance(m, nn.BatchNorm2d):
                m.weight.copy_(0.5 + 0.1 * torch.randn(m.weight.shape, generator=g))
                m.bias.copy_(0.1 * torch.randn(m.bias.shape, generator=g))
                m.running_mean.copy_(0.2 * torch.randn(m.bias.shape, generator=g))
                m.running_var.copy_(0.5 + torch.rand(m.bias.shape, generator=g))
    return model


def pair(seed=0, **arguments):
    """(ours, the specification) with the same random weights."""
    ours = randomise(dblr_fast.DBLRNet(**arguments), seed)
    specification = python_ref.DBLRNet(**arguments)
    specification.load_state_dict(ours.state_dict())
    return ours, specification


def assert_all_close(mine, specification, x, backend):
    """The one rule for every result of a training step from input x on a backend, `mine`.

    The last bias is judged together with its layer's weight: its gradient is a single value, and the error of
    one value, eager's or ours, may be next to nothing by luck.
    """
    def joined(results):
        results = dict(results)
        last = [results.pop(f"gradient of conv35.{name}").flatten() for name in ("weight", "bias")]
        return {**results, "gradient of conv35": torch.cat(last)}
    eager = [joined(results(specification, x, order)) for order in orders(backend)]
    exact = joined(results(copy.deepcopy(specification).double(), x.double()))
    mine = joined(mine)
    layers = 2 * len(specification.blocks) + 7 if backend == "cpu" else 0
    for name in exact:
        assert_close_as_eager(name, mine[name], [e[name] for e in eager], exact[name],
                              winograd=layers * (1 + ("gradient" in name)))


def target_like(y):
    return torch.rand(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(y.dtype)


def results(model, x, order=None):
    """Output, every gradient and running statistic of one training step; in an order, of a copy of the model."""
    if order:
        model = ordered_model(model, order)
    mirror, _ = order or ORDERS[0]
    x = turned(x, mirror).clone().requires_grad_()
    y = model(x)
    ((y - turned(target_like(y), mirror)) ** 2).mean().backward()
    out = {"output": y.detach(), "input gradient": x.grad}
    out.update({f"gradient of {n}": p.grad for n, p in model.named_parameters()})
    out.update({n: b for n, b in model.named_buffers() if "running" in n})
    return {n: turned(t, mirror) for n, t in out.items()}


def input_clear_of_zero(model, *shape):
    """Of 30 random inputs the one that keeps all values before a ReLU furthest from zero, in float64.

    A ReLU's gradient jumps at zero: where rounding carries a value across, gradients differ by what is no error.
    """
    def clearance(x):
        nearest = []
        plain = nn.functional.relu
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nn.functional, "relu", lambda v: nearest.append(v.abs().min().item()) or plain(v))
            with torch.no_grad():
                copy.deepcopy(model).double()(x.double())
        return min(nearest)
    g = torch.Generator().manual_seed(1)
    return max((torch.rand(*shape, generator=g) for _ in range(30)), key=clearance)


def test_parameters_of_table_1():
    ours = dblr_fast.DBLRNet()
    specification = python_ref.DBLRNet()
    assert sum(p.numel() for p in ours.parameters()) == 1_879_937
    assert sum(p.numel() for p in specification.parameters()) == 1_879_937
    assert [(n, p.shape) for n, p in ours.named_parameters()] == [
        (n, p.shape) for n, p in specification.named_parameters()]


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_state_dict_both_ways(arguments):
    ours, specification = dblr_fast.DBLRNet(**arguments, **SMALL), python_ref.DBLRNet(**arguments, **SMALL)
    assert list(ours.state_dict()) == list(specification.state_dict())
    ours.load_state_dict(specification.state_dict())
    specification.load_state_dict(ours.state_dict())
    for a, b in zip(ours.state_dict().values(), specification.state_dict().values()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_training_parity(backend, arguments):
    arguments = {**arguments, **WIDE}
    ours, specification = pair(**arguments)
    x = input_clear_of_zero(specification, 2, ours.frames, 19, 13)
    with dblr_fast.use_backend(backend):
        mine = results(ours, x)
    assert_all_close(mine, specification, x, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_whole_network_parity(backend):
    """Table I's own widths and depth: a training step, then evaluation on the engine and on the ops."""
    ours, specification = pair()
    x = input_clear_of_zero(specification, 2, 5, 9, 7)
    with dblr_fast.use_backend(backend):
        mine = results(ours, x)
        assert_all_close(mine, specification, x, backend)
        specification, exact_model = specification.eval(), copy.deepcopy(specification).double().eval()
        ours.load_state_dict(specification.state_dict())
        ours.eval()
        x = torch.rand(2, 5, 21, 17, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            exact, on_engine = exact_model(x.double()), ours(x)
        on_ops = ours(x).detach()
    eager = outputs(specification, x, backend)
    assert_close_as_eager("engine", on_engine, eager, exact)
    assert_close_as_eager("ops", on_ops, eager, exact)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_identity_is_exact(backend, arguments):
    model = dblr_fast.DBLRNet(**arguments, **SMALL, init="identity")
    x = torch.rand(2, model.frames, 11, 14)
    centre = x[:, model.frames // 2:model.frames // 2 + 1]
    with dblr_fast.use_backend(backend):
        trained = model(x).detach()
        model.eval()
        pictures = [trained, model(x).detach()]
        with torch.no_grad():
            pictures.append(model(x))
    for y in pictures:
        if backend == "cpu":  # exact but for the rounding of Winograd's transforms, in L2 and the tail
            assert_close_as_eager("identity", y, centre, centre.double(), winograd=3)
        else:
            assert torch.equal(y, centre)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_training_and_evaluation(backend):
    ours, specification = pair(**WIDE)
    x = input_clear_of_zero(specification, 2, 5, 12, 9)
    with dblr_fast.use_backend(backend):
        compiled = torch.compile(copy.deepcopy(ours), fullgraph=True, backend="aot_eager")
        traced = {name.replace("_orig_mod.", ""): t for name, t in results(compiled, x).items()}
        assert_all_close(traced, specification, x, backend)
        compiled.eval()
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), compiled._orig_mod(x))


def test_compile_inductor_and_dynamic_sizes():
    ours, _ = pair(**SMALL)
    compiled = torch.compile(ours.eval(), fullgraph=True, dynamic=True)
    for size in ((9, 12), (14, 11)):
        x = torch.rand(1, 5, *size)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), ours(x))


def test_compile_training_in_dynamic_sizes():
    """Running statistics are updated by a count that is a symbol."""
    ours, _ = pair(**SMALL)
    compiled = torch.compile(copy.deepcopy(ours), fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((9, 12), (14, 11)):
        x = torch.rand(2, 5, *size)
        torch.testing.assert_close(compiled(x), ours(x))
    for (name, traced), buffer in zip(compiled._orig_mod.named_buffers(), ours.buffers()):
        torch.testing.assert_close(traced, buffer, msg=name)


def test_export_and_meta():
    ours, _ = pair(**SMALL)
    ours.eval()
    x = torch.rand(1, 5, 9, 12)
    program = torch.export.export(ours, (x,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), ours(x))
    assert copy.deepcopy(ours).to("meta")(x.to("meta")).shape == (1, 1, 9, 12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    ours, specification = pair(**SMALL)
    x = torch.rand(2, 5, 9, 12)
    with torch.no_grad():
        exact = copy.deepcopy(specification).double().eval()(x.double())
        judge = torch.float32 if dtype == torch.float64 else dtype  # float64 is judged by float32's, scaled
        eager = copy.deepcopy(specification).to(judge).eval()(x.to(judge))
        y = ours.to(dtype).eval()(x.to(dtype))
    assert y.dtype == dtype
    assert_close_as_eager("output", y, eager, exact)


def test_autocast():
    ours, specification = pair(**SMALL)
    x = torch.rand(2, 5, 9, 12)
    with torch.no_grad():
        exact = copy.deepcopy(specification).double().eval()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            assert_close_as_eager("output", ours.eval()(x), specification.eval()(x), exact)
        ours.train()
        loss = (ours(x).float() ** 2).mean()
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in ours.parameters())


def test_copies_and_moves():
    ours, _ = pair(**SMALL)
    ours.eval()
    x = torch.rand(1, 5, 9, 12)
    with torch.no_grad():
        y = ours(x)  # the engine now serves this module
        assert torch.equal(copy.deepcopy(ours)(x), y)
        assert torch.equal(pickle.loads(pickle.dumps(ours))(x), y)
        buffer = io.BytesIO()
        torch.save(ours, buffer)
        buffer.seek(0)
        assert torch.equal(torch.load(buffer, weights_only=False)(x), y)
        assert torch.equal(ours.to(memory_format=torch.channels_last)(x), y)
        assert torch.equal(ours.double().float()(x), y)
        assert torch.equal(nn.DataParallel(ours)(x), y)


def test_distributed_data_parallel(tmp_path):
    ours, _ = pair(**SMALL)
    plain = copy.deepcopy(ours)
    x = torch.rand(2, 5, 9, 12)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = results(nn.parallel.DistributedDataParallel(ours), x)
    finally:
        dist.destroy_process_group()
    for name, value in results(plain, x).items():
        other = [v for k, v in wrapped.items() if k.replace("module.", "") == name]
        assert torch.equal(value, other[0]), name


def test_frozen_and_replaced_batch_norm():
    """Batch norms in evaluation mode inside a training module, and other kinds of batch norm, are honoured."""
    ours, specification = pair(**SMALL)
    x = torch.rand(2, 5, 9, 12)
    for model in (ours, specification):
        model.train()
    mixed = ours.blocks[0].first.bn.eval()
    before = mixed.running_mean.clone()
    ours(x).sum().backward()
    assert torch.equal(mixed.running_mean, before)
    assert not torch.equal(ours.blocks[0].second.bn.running_mean, specification.blocks[0].second.bn.running_mean)
    instance = copy.deepcopy(specification.eval())
    ours, _ = pair(**SMALL)
    ours.eval()
    ours.conv31.bn = nn.Identity()
    instance.conv31.forward = lambda x, relu: torch.relu(instance.conv31.conv(x))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), instance(x), rtol=0, atol=1e-4)


REFUSALS = [
    (dict(variant="4d"), "variant must be one of 3d, multi, single; got '4d'"),
    (dict(frames=4), "variant '3d' needs frames to be an odd number of at least 3; got 4"),
    (dict(frames=5, variant="single"), "variant 'single' needs frames to be 1; got 5"),
    (dict(blocks=0), "blocks must be a whole number of at least 1; got 0"),
    (dict(init="xavier"), "init must be 'paper' or 'identity'; got 'xavier'"),
]


@pytest.mark.parametrize("arguments,message", REFUSALS)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        dblr_fast.DBLRNet(**arguments)


def test_refuses_wrong_window():
    model = dblr_fast.DBLRNet(**SMALL)
    for shape in ((1, 4, 8, 8), (5, 8, 8), (1, 1, 5, 8, 8)):
        with pytest.raises(ValueError, match=r"wanted an input \(N, 5, H, W\)"):
            model(torch.rand(shape))


def test_paper_initialisation():
    model = dblr_fast.DBLRNet()
    weights = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))])
    assert abs(weights.std().item() - 0.01) < 1e-4 and abs(weights.mean().item()) < 1e-4
