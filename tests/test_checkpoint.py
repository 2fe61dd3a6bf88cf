"""Weights on disk: what is written comes back, what does not fit is refused by name, nothing is run."""

import pickle
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

import dblr_fast
from dblr_fast import checkpoint
from dblr_fast.errors import Refusal


@pytest.fixture
def model():
    torch.manual_seed(0)
    return dblr_fast.DBLRNet(width=8, blocks=2)


@pytest.fixture
def path(tmp_path, model):
    dblr_fast.save_model(model, tmp_path / "m.safetensors", {"trained_on": "noise", "scores": "none"})
    return tmp_path / "m.safetensors"


@pytest.mark.parametrize("options", [{}, {"frames": 7}, {"variant": "multi", "tail_skip": False},
                                     {"variant": "single", "frames": 1}, {"width": 16, "blocks": 1}])
def test_what_is_saved_comes_back(tmp_path, options):
    model = dblr_fast.DBLRNet(**{"width": 8, "blocks": 2, **options})
    for buffer in model.buffers():
        buffer.add_(1)
    dblr_fast.save_model(model, tmp_path / "m.safetensors", {"licence": "Apache-2.0"})
    loaded = dblr_fast.load_model(tmp_path / "m.safetensors")
    assert not loaded.training
    for name in ("frames", "variant", "tail_skip", "width"):
        assert getattr(loaded, name) == getattr(model, name)
    state = model.state_dict()
    assert list(loaded.state_dict()) == list(state)
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == state[name].dtype and torch.equal(tensor, state[name])
    facts = loaded.metadata
    assert (facts["format"], facts["licence"], facts["luma_matrix"], facts["luma_range"]) == (
        "dblr_fast", "Apache-2.0", "bt601", "full")


def test_a_loaded_model_trains_on(path):
    model = dblr_fast.load_model(path).train()
    model(torch.rand(1, 5, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_loading_draws_no_random_numbers(path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    dblr_fast.load_model(path)
    assert torch.equal(torch.get_rng_state(), before)


def test_saving_replaces_in_one_step(tmp_path, model, monkeypatch):
    target = tmp_path / "m.safetensors"
    target.write_text("old")

    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", broken)
    with pytest.raises(OSError):
        dblr_fast.save_model(model, target)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_16_bit_weights_are_widened(tmp_path, path):
    save_file({k: v.bfloat16() if v.is_floating_point() else v for k, v in load_file(path).items()},
              tmp_path / "h.safetensors", checkpoint.read_metadata(path))
    assert dblr_fast.load_model(tmp_path / "h.safetensors").conv1.weight.dtype == torch.float32


def altered(path, change, metadata=None):
    state = load_file(path)
    facts = {**checkpoint.read_metadata(path), **(metadata or {})}
    change(state)
    target = path.with_name("altered.safetensors")
    save_file(state, target, facts)
    return target


def refused(match, path):
    with pytest.raises(Refusal, match=match) as caught:
        dblr_fast.load_model(path)
    assert "\n" not in str(caught.value)


def test_tensors_that_do_not_fit(path):
    refused("conv31.conv.bias of shape .8,. is missing", altered(path, lambda s: s.pop("conv31.conv.bias")))
    for name, tensor, said in (
            ("conv35.bias", torch.zeros(2), "should have shape .1,., the file has .2,."),
            ("extra.weight", torch.zeros(2), "is not part of"),
            ("conv1.bias", torch.zeros(16).long(), "should be of type"),
            ("conv1.bias", torch.full((16,), float("nan")), "holds values that are not finite")):
        refused(f"tensor {name} {said}", altered(path, lambda s: s.update({name: tensor})))
    refused("conv2.weight should have shape .64", altered(path, lambda s: None, {"width": "64"}))
    refused("blocks.2.first.conv.weight of shape .* is missing",
            altered(path, lambda s: None, {"blocks": "14"}))


@pytest.mark.parametrize("facts, match", [
    ({"frames": "many"}, "frames must be a number"), ({"frames": "4"}, "does not go with 4 frames"),
    ({"frames": "1"}, "does not go with 1 frames"), ({"variant": "4d"}, "variant must be one of"),
    ({"tail_skip": "perhaps"}, "tail_skip must be one of"), ({"width": "9999999"}, "width must be a number"),
    ({"blocks": "-1"}, "blocks must be a number"), ({"luma_matrix": "rec9"}, "luma_matrix must be one of"),
    ({"luma_range": "wide"}, "luma_range must be one of")])
def test_metadata_that_makes_no_sense(path, model, tmp_path, facts, match):
    refused(match, altered(path, lambda s: None, facts))
    if set(facts) & {"luma_matrix", "luma_range"}:
        with pytest.raises(Refusal, match=match):
            dblr_fast.save_model(model, tmp_path / "n.safetensors", facts)


def test_a_file_without_metadata_is_taken_for_the_papers_network(tmp_path):
    model = dblr_fast.DBLRNet()
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    assert len(dblr_fast.load_model(tmp_path / "m.safetensors").blocks) == 14


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("code out of a checkpoint was run",)


def test_files_that_are_no_checkpoints(tmp_path):
    refused("there is no model file", tmp_path / "none.safetensors")
    refused("is a folder", tmp_path)
    bad = tmp_path / "bad.safetensors"
    for data in (b"", b"hello", struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 10) + b"0123456789",
                 pickle.dumps(Bomb())):
        bad.write_bytes(data)
        refused("is not a readable safetensors file", bad)


def test_a_truncated_file(path):
    path.write_bytes(path.read_bytes()[:-100])
    refused("is not a readable safetensors file", path)


def test_unknown_names_list_the_known_ones(tmp_path, monkeypatch, path):
    monkeypatch.setattr(checkpoint, "FOLDER", tmp_path)
    assert checkpoint.models() == {"m": path}
    assert len(dblr_fast.load_model("m").blocks) == 2
    refused("no model 'nobody'; known ones: m; or give the path", "nobody")


@pytest.mark.parametrize("name", sorted(checkpoint.models()))
def test_shipped_models_load_and_say_where_they_come_from(name):
    model = dblr_fast.load_model(name)
    for key in ("trained_on", "scores", "licence", "luma_matrix", "luma_range"):
        assert model.metadata[key]
