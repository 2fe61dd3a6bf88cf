"""What all op files share: registration, autocast, checks, and the caller's choices."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import levels
from ..backends import requested, select

LIBRARY = torch.library.Library("dblr_fast", "DEF")


def define(schema: str, run, fake) -> None:
    """Registers an op (on every device, the backend decides) with its fake."""
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"dblr_fast::{name}", fake, lib=LIBRARY)


def follow_autocast(name: str, maps: tuple[int, ...], parameters: tuple[int, ...]) -> None:
    """Under autocast, casts the arguments at the positions `maps` to autocast's dtype, as convolutions do, and on a CPU
    `parameters` too. On a GPU, where every cast is a launch, these stay: kernels round them as they take them, and
    their gradients come as float32."""
    op = getattr(torch.ops.dblr_fast, name).default
    for device_type, key, cast_too in (("cpu", "AutocastCPU", parameters), ("cuda", "AutocastCUDA", ())):
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def cast(*args, device_type=device_type, keys=keys, wanted=(*maps, *cast_too)):
            dtype, args = torch.get_autocast_dtype(device_type), list(args)
            for i in wanted:
                if isinstance(args[i], Tensor) and args[i].dtype in LOW_OR_SINGLE:
                    args[i] = in_dtype(args[i], dtype)
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return op(*args)
        LIBRARY.impl(name, cast, key)


LOW_OR_SINGLE = (torch.float16, torch.bfloat16, torch.float32)


def choices(x: Tensor) -> tuple[str, str]:
    """(backend, precision) that the caller asked for; precision levels are for float32 alone."""
    return requested(), levels.current() if x.dtype == torch.float32 else "exact"


def backend_for(x: Tensor, name: str, level: str):
    return select(x.device, name, level, x.dtype).at(level)


def parameters_for(backend, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Weights and biases in the maps' dtype, unless the backend rounds float32 ones itself."""
    if backend.rounds_parameters:
        return tensors
    return tuple(in_dtype(t, x.dtype) for t in tensors)


def in_dtype(t: Tensor, dtype: torch.dtype) -> Tensor:
    """t.to(dtype), at less cost where there is nothing to do."""
    return t if t.dtype == dtype else t.to(dtype)


def gradients_like(gradients, tensors):
    return [in_dtype(d, t.dtype) for d, t in zip(gradients, tensors)]


def kept(t: Tensor | None, like: Tensor) -> Tensor:
    """An op returns tensors only: an empty one stands for None."""
    return like.new_empty(0) if t is None else t


def or_none(t: Tensor, wanted: bool) -> Tensor | None:
    return t if wanted else None


def map_like(x: Tensor, channels: int) -> Tensor:
    """An uninitialised channels_last map of x's batch, height and width."""
    n, _, h, w = x.shape
    return x.new_empty((n, h, w, channels)).permute(0, 3, 1, 2)


def needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def check(condition, message) -> None:
    """Raises RuntimeError with message() unless the condition holds; works on symbolic shapes.

    Ops check some twenty things a call: only what is symbolic goes through torch._check, which costs far more.
    """
    if condition is True:
        return
    if condition is False:
        raise RuntimeError(message())
    torch._check(condition, message)


def check_map(op: str, x: Tensor, what: str = "(N, C, H, W)") -> None:
    if x.dim() != 4:
        raise RuntimeError(f"{op}: wanted a 4-D input {what}, got {x.dim()}-D {tuple(x.shape)}")
    if not x.is_floating_point():
        raise RuntimeError(f"{op}: wanted a floating-point input, got {x.dtype}; convert it, for pictures to [0, 1]")
    for length in x.shape:
        check(length >= 1, lambda: f"{op}: wanted an input with at least one element, got {tuple(x.shape)}")


def check_shape(op: str, name: str, t: Tensor, shape: tuple) -> None:
    # Sizes of real tensors are numbers and compare at once; those of fake ones may be symbols, which go one by one.
    if type(t) in REAL and t.shape == shape:
        return
    check(t.dim() == len(shape), lambda: f"{op}: wanted {name} of shape {tuple(shape)}, got {tuple(t.shape)}")
    for got, wanted in zip(t.shape, shape):
        check(got == wanted, lambda: f"{op}: wanted {name} of shape {tuple(shape)}, got {tuple(t.shape)}")


REAL = (Tensor, torch.nn.Parameter)


def check_parameters(op: str, x: Tensor, **others: Tensor) -> None:
    """Weights and biases: of the input's dtype, or float32 beside 16-bit maps."""
    check_alike(op, x, dtype_too=False, **others)
    dtype = x.dtype
    for name, t in others.items():
        if t.dtype != dtype and not (t.dtype == torch.float32 and dtype in (torch.float16, torch.bfloat16)):
            raise RuntimeError(
                f"{op}: wanted {name} in the input's dtype {dtype}, got {t.dtype}; convert one, or use autocast")


def check_alike(op: str, x: Tensor, dtype_too: bool = True, **others: Tensor | None) -> None:
    device, dtype = x.device, x.dtype
    for name, t in others.items():
        if t is None:
            continue
        if t.device != device:
            raise RuntimeError(
                f"{op}: wanted {name} on the input's device {device}, got {t.device}; move the module or the input")
        if dtype_too and t.dtype != dtype:
            raise RuntimeError(
                f"{op}: wanted {name} in the input's dtype {dtype}, got {t.dtype}; convert one, or use autocast")
