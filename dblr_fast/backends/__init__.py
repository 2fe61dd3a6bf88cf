"""Which code runs an op: the registry of backends and the caller's choice among them.

``torch`` is always there; ``cpu`` holds the C++ kernels, ``cuda`` the CUDA ones, ``triton`` those that Triton
compiles on first use. Left alone, the fastest backend that can run on a tensor's device is taken. A backend asked
for by name is taken or refused with the reason, never replaced.
The choice holds for the whole process, as ``torch.backends`` flags do, so that the threads of autograd and
of DataParallel see it too.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from types import ModuleType

import torch

from .protocol import Backend, FoldedNetwork, Network

__all__ = ["Backend", "FoldedNetwork", "Network", "backends", "get", "requested", "select", "use_backend"]

# Order of preference for each type of device.
PREFERENCE = {"cpu": ("cpu", "torch"), "cuda": ("cuda", "triton", "torch")}
DEFAULT_PREFERENCE = ("torch",)

_instances: dict[str, Backend] = {}
_requested: str | None = None


def _create(name: str) -> Backend:
    if name == "torch":
        from .torch_backend import TorchBackend

        return TorchBackend()
    if name == "cuda":
        from .cuda import CudaBackend

        return CudaBackend()
    if name == "triton":
        from .triton_backend import TritonBackend

        return TritonBackend()
    from .cpu import CpuBackend

    return CpuBackend()


NAMES = ("torch", "cpu", "cuda", "triton")


def get(name: str) -> Backend:
    """The backend of that name. Raises ValueError for a name that does not exist."""
    if name not in NAMES:
        raise ValueError(f"backend must be one of auto, {', '.join(NAMES)}; got {name!r}")
    if name not in _instances:
        _instances[name] = _create(name)
    return _instances[name]


def backends() -> dict[str, str | None]:
    """Every backend's name -> None when it can run here, else the reason why not."""
    return {name: get(name).unavailable() for name in NAMES}


def _checked(name: str | None) -> str:
    """"" for the automatic choice, else the name of a backend that can run here."""
    if name in (None, "", "auto"):
        return ""
    reason = get(name).unavailable()
    if reason is not None:
        raise RuntimeError(f"backend {name!r} cannot run: {reason}")
    return name


def requested() -> str:
    """The backend that the caller asked for (``use_backend``, else DBLR_FAST_BACKEND), "" for automatic."""
    global _requested
    if _requested is None:
        _requested = _checked(os.environ.get("DBLR_FAST_BACKEND"))
    return _requested


@contextmanager
def use_backend(name: str | None):
    """Context in which ops run on the named backend; "auto" or None restores the automatic choice.

    Raises ValueError for an unknown name and RuntimeError with the reason when that backend cannot run.
    """
    global _requested
    name = _checked(name)
    before = requested() if os.environ.get("DBLR_FAST_BACKEND") else _requested
    _requested = name
    try:
        yield
    finally:
        _requested = before


def _level_refused(backend: Backend, device, precision: str, dtype: torch.dtype | None) -> str | None:
    """Why an available backend does not compute at the precision in the dtype; None when it does."""
    dtypes = getattr(backend, "dtypes", None)
    if dtype is not None and dtypes is not None and dtype not in dtypes:
        offered = ", ".join(str(t).removeprefix("torch.") for t in dtypes)
        return (f"it computes in {offered}, not in {str(dtype).removeprefix('torch.')}; convert it, or take the torch "
                "backend")
    return backend.precisions(device).get(precision, "there is no such level")


def select(device: torch.device, name: str = "", precision: str = "exact",
           dtype: torch.dtype | None = None) -> Backend:
    """The backend that runs an op on `device` at `precision`, on tensors of `dtype` where one is given.

    name: "" takes the first of the device's order of preference that can. Raises RuntimeError when the
    named backend cannot run on the device, ValueError when it does not offer the precision or the dtype.
    """
    if name:
        backend = get(name)
        reason = backend.unavailable(device)
        if reason is not None:
            raise RuntimeError(f"backend {name!r} cannot run on {device}: {reason}")
        reason = _level_refused(backend, device, precision, dtype)
        if reason is not None:
            raise ValueError(f"backend {name!r} does not offer precision {precision!r} on {device}: {reason}")
        return backend
    why = []
    for candidate in PREFERENCE.get(device.type, DEFAULT_PREFERENCE):
        backend = get(candidate)
        reason = backend.unavailable(device) or _level_refused(backend, device, precision, dtype)
        if reason is None:
            return backend
        why.append(f"{candidate}: {reason}")
    raise ValueError(f"no backend offers precision {precision!r} on {device} ({'; '.join(why)})")


class _CallableModule(ModuleType):
    """`dblr_fast.backends()` is public, and `dblr_fast.backends` is this package: calling it is the former."""

    def __call__(self):
        return backends()


sys.modules[__name__].__class__ = _CallableModule
