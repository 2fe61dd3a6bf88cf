"""The report of `dblr-fast info`: versions, what was built, which backends run, the models."""

from __future__ import annotations

import os
import platform
from importlib import import_module, metadata

from . import __version__


def report() -> str:
    """Some dozen lines of text. Whatever is missing on this machine is said, never raised."""
    import torch

    lines = [f"dblr_fast {__version__}, Python {platform.python_version()}, torch {torch.__version__}",
             f"system    {platform.platform()}, {_cpu_name()}",
             f"threads   {torch.get_num_threads()} of torch, {len(os.sched_getaffinity(0))} CPUs allowed"
             if hasattr(os, "sched_getaffinity") else f"threads   {torch.get_num_threads()} of torch",
             "packages  " + ", ".join(_version(name) for name in (
                 "numpy", "av", "opencv-python-headless", "safetensors", "tyro", "rich", "triton")),
             "cpu code  " + _said(_cpu_code),
             "cuda code " + _said(_cuda_code),
             "devices   " + _said(_devices),
             "kernels   " + _said(_kernels),
             "triton    " + _said(_triton),
             "auto      " + _said(_automatic)]
    lines += ["backends"] + [f"  {name:<8}{'on' if reason is None else 'off: ' + reason}"
                             for name, reason in _backends().items()]
    lines += ["models"] + (_models() or ["  none in this installation"])
    return "\n".join(lines)


def _said(describe) -> str:
    try:
        return describe()
    except Exception as error:  # a report must come out on a machine where anything is broken
        return f"not available ({_first_line(error)})"


def _cpu_code() -> str:
    native = import_module("dblr_fast._cpu")
    built, chosen = ", ".join(native.isas()), native.isa()
    return f"built with {_flat(native.build_info())}; instruction sets {built}; {chosen} is used"


def _cuda_code() -> str:
    native = import_module("dblr_fast._cuda")
    info = f" with {_flat(native.build_info())}" if hasattr(native, "build_info") else ""
    return f"built{info} for {', '.join(map(str, native.built_archs()))}"


def _devices() -> str:
    import torch

    if not torch.cuda.is_available():
        return "no GPU that torch can use"
    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"cuda:{i} {p.name} (sm_{p.major}{p.minor}, {p.total_memory >> 20} MiB)"
                     for i, p in enumerate(properties))


def _kernels() -> str:
    """What the cuda backend runs on each GPU, and why."""
    import torch

    from .backends import get

    cuda, lines = get("cuda"), []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        reason = cuda.unavailable(torch.device("cuda", i))
        lines.append(f"cuda:{i} {cuda.kernels(torch.device('cuda', i)) if reason is None else 'none: ' + reason}")
    return ", ".join(lines) or "no GPU to run CUDA kernels on"


def _triton() -> str:
    """Where the configurations of Triton's kernels come from."""
    import_module("triton")
    tuning = import_module("dblr_fast.triton_kernels.tuning")
    if not tuning.enabled():
        return "fixed configurations (DBLR_FAST_AUTOTUNE=off)"
    return f"configurations are measured on first use and kept in {tuning.cache_folder()}"


def _automatic() -> str:
    """The backend that each device gets unless one is asked for; those before it say below why they are off."""
    import torch

    from .backends import select

    devices = [torch.device("cpu")] + [torch.device("cuda", i) for i in range(
        torch.cuda.device_count() if torch.cuda.is_available() else 0)]
    return ", ".join(f"{device} takes {select(device).name}" for device in devices)


def _backends() -> dict[str, str | None]:
    from . import backends

    try:
        return backends.backends()
    except Exception:  # one broken backend must not hide the others
        return {name: _one_backend(name) for name in backends.NAMES}


def _one_backend(name) -> str | None:
    from . import backends

    try:
        return backends.get(name).unavailable()
    except Exception as error:
        return _first_line(error)


def _models() -> list[str]:
    from .checkpoint import DEFAULT, models, read_metadata

    lines = []
    for name, path in models().items():
        try:
            facts = read_metadata(path)
            shown = ", ".join(f"{key} {value}" for key, value in sorted(facts.items()) if key != "format")
        except ValueError as error:
            shown = _first_line(error)
        lines.append(f"  {name}{' (default)' if name == DEFAULT else ''}: {shown or 'no metadata'}")
    return lines


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(name) -> str:
    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return f"{name} missing"


def _flat(info) -> str:
    if isinstance(info, dict):
        return ", ".join(f"{key} {value}" for key, value in info.items())
    return " ".join(str(info).split())


def _first_line(error) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
