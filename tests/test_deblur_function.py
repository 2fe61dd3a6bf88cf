"""deblur(): frames in memory, of every type, come back as they came but for their luma."""

import numpy as np
import pytest
import torch
from clips import Passing

import dblr_fast
from dblr_fast.errors import Refusal

RNG = np.random.default_rng(1)
TOP = {np.uint8: 255, np.uint16: 65535, np.float32: 1.0, np.float64: 1.0, np.float16: 1.0}


def random_frames(shape, dtype):
    if np.issubdtype(dtype, np.integer):
        return RNG.integers(0, TOP[dtype], shape, dtype=dtype, endpoint=True)
    return RNG.random(shape).astype(dtype)


@pytest.mark.parametrize("shape", [(1, 6, 7), (2, 6, 7), (9, 6, 7), (3, 6, 7, 3), (1, 1, 1), (6, 1, 9, 3)])
@pytest.mark.parametrize("dtype", list(TOP))
@pytest.mark.parametrize("limits", ["full", "limited"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_an_identity_changes_nothing(shape, dtype, limits, as_tensor):
    frames = random_frames(shape, dtype)
    given = torch.from_numpy(frames.copy()) if as_tensor else frames.copy()
    out = dblr_fast.deblur(given, model=Passing(), range=limits)
    assert type(out) is type(given) and out.dtype == given.dtype and out.shape == given.shape
    np.testing.assert_array_equal(np.asarray(given), frames)  # the input is not written to
    error = np.abs(np.asarray(out).astype(np.float64) - frames).max()
    assert error <= (0 if np.issubdtype(dtype, np.integer) else 1e-6)


@pytest.mark.parametrize("dtype", list(TOP))
@pytest.mark.parametrize("limits, span", [("full", 1.0), ("limited", 219 / 255)])
@pytest.mark.parametrize("shape", [(3, 8, 9), (3, 8, 9, 3)])
def test_a_brighter_luma_is_added_to_each_channel(dtype, limits, span, shape):
    frames = random_frames(shape, dtype)
    top = TOP[dtype]
    if dtype is np.uint16 and limits == "limited":
        span = 219 * 256 / 65535
    out = dblr_fast.deblur(frames, model=Passing(lambda y: y + 0.1), range=limits)
    expected = np.clip(frames.astype(np.float64) + 0.1 * span * top, 0, top)
    step = {np.uint8: 0.501, np.uint16: 1.01, np.float16: 1e-3}.get(dtype, 1e-6)
    assert np.abs(out.astype(np.float64) - expected).max() <= step
    assert out.max() == top  # clipped, not wrapped


def test_luma_is_bt601_and_chroma_stays():
    frames = random_frames((1, 16, 16, 3), np.float64) * 0.5 + 0.25
    seen = []
    out = dblr_fast.deblur(frames, model=Passing(lambda y: seen.append(y) or y * 0.8 + 0.1))
    luma = frames @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(seen[0][0, 0].numpy(), luma[0], atol=1e-6)
    np.testing.assert_allclose(out @ [0.299, 0.587, 0.114], luma * 0.8 + 0.1, atol=1e-6)
    for channel in (0, 2):  # R - Y and B - Y are Cr and Cb up to a factor
        np.testing.assert_allclose(out[..., channel] - out @ [0.299, 0.587, 0.114],
                                   frames[..., channel] - luma, atol=1e-6)


def test_the_matrix_of_the_weights_is_honoured():
    seen = []
    frames = random_frames((1, 4, 4, 3), np.float32)
    dblr_fast.deblur(frames, model=Passing(lambda y: seen.append(y) or y, metadata={"luma_matrix": "bt709"}))
    np.testing.assert_allclose(seen[0][0, 0], frames[0] @ np.float32([0.2126, 0.7152, 0.0722]), atol=1e-6)


@pytest.mark.parametrize("value, expected", [(float("nan"), 0), (float("inf"), 255), (-5.0, 0)])
def test_what_cannot_be_held_is_clipped(value, expected):
    out = dblr_fast.deblur(np.zeros((1, 2, 2), np.uint8), model=Passing(lambda y: y + value))
    assert (out == expected).all()


def test_strided_and_bfloat16_input():
    frames = torch.rand(3, 12, 20, dtype=torch.bfloat16)
    assert torch.equal(dblr_fast.deblur(frames, model=Passing()), frames)
    strided = torch.randint(0, 256, (3, 20, 12), dtype=torch.uint8).transpose(1, 2)[:, ::2, 1:]
    assert torch.equal(dblr_fast.deblur(strided, model=Passing()), strided)
    array = random_frames((3, 20, 12), np.uint8)[:, ::-1, ::2]
    np.testing.assert_array_equal(dblr_fast.deblur(array, model=Passing()), array)


def test_no_gradient_is_recorded():
    frames = torch.rand(2, 4, 4, requires_grad=True)
    assert not dblr_fast.deblur(frames, model=Passing()).requires_grad


@pytest.mark.parametrize("frames", [1, 3, 7])
def test_other_window_lengths(frames):
    clip = random_frames((4, 5, 5), np.uint8)
    np.testing.assert_array_equal(dblr_fast.deblur(clip, model=Passing(frames=frames)), clip)


def test_a_module_and_a_file_give_the_same(tmp_path):
    model = dblr_fast.DBLRNet(width=8, blocks=1, init="identity").eval()
    frames = random_frames((3, 20, 21, 3), np.uint8)
    out = dblr_fast.deblur(frames, model=model)
    np.testing.assert_array_equal(out, frames)
    dblr_fast.save_model(model, tmp_path / "m.safetensors")
    np.testing.assert_array_equal(dblr_fast.deblur(frames, model=tmp_path / "m.safetensors"), out)
    np.testing.assert_array_equal(dblr_fast.deblur(frames, model=dblr_fast.Engine(model)), out)


@pytest.mark.parametrize("frames, error, match", [
    ([1, 2], TypeError, "numpy array or a torch tensor, got list"),
    (np.zeros((2, 4, 4), np.int32), Refusal, "uint8, uint16 or floats"),
    (np.zeros((2, 4, 4), bool), Refusal, "uint8, uint16 or floats"),
    (np.zeros((2, 4, 4), np.complex64), Refusal, "uint8, uint16 or floats"),
    (np.zeros((4, 4), np.uint8), Refusal, r"got \(4, 4\)"),
    (np.zeros((2, 4, 4, 4), np.uint8), Refusal, r"got \(2, 4, 4, 4\)"),
    (np.zeros((0, 4, 4), np.uint8), Refusal, "at least one frame"),
    (np.zeros((2, 0, 4), np.uint8), Refusal, "at least one frame"),
    (torch.zeros(2, 4, 4, dtype=torch.int64), Refusal, "uint8, uint16 or floats")])
def test_frames_that_do_not_fit(frames, error, match):
    with pytest.raises(error, match=match):
        dblr_fast.deblur(frames, model=Passing())


def test_a_range_that_does_not_exist():
    with pytest.raises(Refusal, match="range must be one of limited, full"):
        dblr_fast.deblur(np.zeros((1, 2, 2), np.uint8), model=Passing(), range="auto")
