"""The ops and the network in C++ (csrc/cpu), through the extension module dblr_fast._cpu.

Here tensors become addresses, sizes and strides, and results are allocated. float32 and float64 run as they
are, and so do maps in bfloat16 where the CPU multiplies in it (AMX-BF16, AVX512-BF16); elsewhere, as float16 everywhere,
they are widened to float32 here and narrowed again on the way out. The number of threads is torch's (torch.get_num_threads()), and so
is the pool of threads.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from .planar import planar_stem, stem_gradients
from .protocol import FoldedNetwork

MISSING = ("dblr_fast was built without its CPU kernels ({}); install it again with `pip install .`, or take "
           "the torch backend")


def _load():
    """(extension module, None) or (None, why it cannot be used)."""
    try:
        from .. import _cpu
    except ImportError as error:
        return None, MISSING.format(error)
    try:
        _cpu.isa()
    except ValueError as error:  # DBLR_FAST_ISA asks for what this CPU lacks
        return None, str(error)
    _cpu.use_openmp(_openmp_entry())
    return _cpu, None


def _openmp_entry() -> int:
    """Address of GOMP_parallel in the OpenMP library that torch has loaded, 0 when there is none."""
    folder = Path(torch.__file__).parent / "lib"
    names = [str(p) for pattern in ("libgomp*", "libiomp5*") for p in sorted(folder.glob(pattern))]
    already_loaded = os.RTLD_NOW | getattr(os, "RTLD_NOLOAD", 0)
    for name in (*names, None):  # None: all global symbols of the process
        try:
            return ctypes.cast(ctypes.CDLL(name, mode=already_loaded).GOMP_parallel, ctypes.c_void_p).value or 0
        except (OSError, AttributeError):
            continue
    return 0


def _compute_dtype(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _view(t: Tensor | None):
    """What the extension takes as a tensor; see csrc/view.h."""
    return None if t is None else (t.data_ptr(), t.element_size(), tuple(t.shape), t.stride())


def _new_map(n: int, c: int, h: int, w: int, dtype: torch.dtype) -> Tensor:
    return torch.empty((n, h, w, c), dtype=dtype).permute(0, 3, 1, 2)


class _Call:
    """Widens the arguments of one op, and keeps them alive until it returns.

    compute: the dtype of the arithmetic and of all but maps; maps: that of maps.
    """

    def __init__(self, like: Tensor, keep_bf16: bool):
        self.dtype, self.compute, self.kept = like.dtype, _compute_dtype(like), []
        self.maps = torch.bfloat16 if keep_bf16 and like.dtype == torch.bfloat16 else self.compute

    def keep(self, t: Tensor) -> Tensor:
        self.kept.append(t)
        return t

    def any_map(self, t: Tensor):
        """A map in any strides."""
        return _view(self.keep(t.to(self.maps)))

    def map(self, t: Tensor | None):
        """A channels_last map; others are converted here, once."""
        if t is None:
            return None
        return _view(self.keep(t.to(self.maps).contiguous(memory_format=torch.channels_last)))

    def array(self, t: Tensor | None):
        return None if t is None else _view(self.keep(t.to(self.compute).contiguous()))

    def arrays(self, *tensors: Tensor | None):
        return [self.array(t) for t in tensors]

    def new_map(self, like: Tensor, channels: int) -> Tensor:
        n, _, h, w = like.shape
        return _new_map(n, channels, h, w, self.maps)

    def new_like(self, *tensors: Tensor) -> list[Tensor]:
        """Uninitialised gradients of parameters."""
        return [torch.empty(t.shape, dtype=self.compute) for t in tensors]

    def out(self, t: Tensor | None) -> Tensor | None:
        """A result map in the caller's dtype."""
        return None if t is None else t.to(self.dtype)


def _views(tensors):
    return [_view(t) for t in tensors]


def _empty(dtype: torch.dtype) -> Tensor:
    return torch.empty(0, dtype=dtype)


def _narrow(gradients, parameters):
    """Gradients in their parameters' dtypes."""
    return tuple(g.to(p.dtype) for g, p in zip(gradients, parameters))


class CpuBackend:
    name = "cpu"
    rounds_parameters = False

    def __init__(self):
        self._cpu, self._reason = _load()

    def at(self, precision):
        return self

    def _call(self, like):
        return _Call(like, keep_bf16=self._cpu.has_bf16())

    def keeps_block_maps(self, x, save):
        # Each costs 7 % of a training step's time to compute again, or 12 % of eager torch's memory to keep: in float32
        # both make just under half of it, in bf16 the second would go beyond. Narrowed the first would not have the
        # same signs.
        if self._call(x).maps != x.dtype:
            return False, False
        return save > 0, save > 1 and x.dtype != torch.bfloat16

    def unavailable(self, device=None):
        if self._reason is not None:
            return self._reason
        if device is not None and torch.device(device).type != "cpu":
            return f"the CPU kernels take tensors on the CPU, these are on {device}; move them or take torch"
        return None

    def precisions(self, device=None):
        none = "this CPU makes no products in bf16 (AVX512-BF16 or AMX-BF16); take half, which is more exact, or fast"
        return {"exact": None, "fast": None, "half": None, "bf16": None if self._cpu.has_bf16() else none}

    def stem(self, x, w1, b1, w2, b2):
        call = self._call(x)
        planar1, bias1, planar2 = planar_stem(w1, b1, w2)
        y = call.new_map(x, w2.shape[0])
        self._cpu.stem(torch.get_num_threads(), call.any_map(x), call.arrays(planar1, bias1, planar2, b2), _view(y))
        return call.out(y)

    def stem_backward(self, grad, x, y, w1, b1, w2, need_x):
        call = self._call(x)
        planar1, bias1, planar2 = planar_stem(w1, b1, w2)
        b2 = w2.new_empty(w2.shape[0])
        dw1, db1, dw2, db2 = d = call.new_like(planar1, bias1, planar2, b2)
        dx = call.new_map(x, x.shape[1]) if need_x else None
        self._cpu.stem_backward(torch.get_num_threads(), call.map(grad), call.any_map(x), call.map(y),
                                call.arrays(planar1, bias1, planar2, b2), _view(dx), _views(d))
        dw1, db1, dw2 = stem_gradients(dw1, db1, dw2, w1, w2)
        dx = None if dx is None else call.out(dx).contiguous()
        return dx, *_narrow((dw1, db1, dw2, db2), (w1, b1, w2, b1))

    def conv_bn_act(self, x, weight, bias, gamma, beta, running_mean, running_var, residual, relu, training,
                    eps, save):
        call = self._call(x)
        channels = weight.shape[0]
        y = call.new_map(x, channels)
        z = call.new_map(x, channels) if save else None
        mean, var = statistics = [torch.empty(channels if training else 0, dtype=call.compute) for _ in range(2)]
        self._cpu.conv_bn_act(
            torch.get_num_threads(), call.any_map(x),
            call.arrays(weight, bias, gamma, beta, running_mean, running_var), call.map(residual), _view(y),
            _view(z), *_views(statistics), relu, training, eps)
        dtype = torch.promote_types(gamma.dtype, torch.float32)
        return call.out(y), mean.to(dtype), var.to(dtype), call.out(z) if save else _empty(x.dtype)

    def conv_bn_act_backward(self, grad, x, weight, bias, gamma, beta, mean, var, z, relu, training, eps,
                             need_x):
        call = self._call(x)
        d = call.new_like(weight, bias, gamma, beta)
        dx = call.new_map(x, x.shape[1]) if need_x else None
        self._cpu.conv_bn_act_backward(
            torch.get_num_threads(), call.map(grad), call.any_map(x),
            call.arrays(weight, bias, gamma, beta, mean, var), call.map(z), _view(dx), _views(d), relu, training,
            eps)
        return call.out(dx), *_narrow(d, (weight, bias, gamma, beta))

    def residual_block(self, x, w1, b1, g1, be1, rm1, rv1, w2, b2, g2, be2, rm2, rv2, training, eps, save):
        call = self._call(x)
        middle = w1.shape[0]
        y, z1 = call.new_map(x, w2.shape[0]), call.new_map(x, middle)
        keep1, keep2 = self.keeps_block_maps(x, save)
        z2 = call.new_map(x, w2.shape[0]) if keep2 else None
        statistics = [torch.empty(c if training else 0, dtype=call.compute)
                      for c in (middle, middle, w2.shape[0], w2.shape[0])]
        self._cpu.residual_block(
            torch.get_num_threads(), call.map(x), call.arrays(w1, b1, g1, be1, rm1, rv1),
            call.arrays(w2, b2, g2, be2, rm2, rv2), _view(y), _view(z1), _view(z2), save > 0,
            _views(statistics), training, eps)
        dtype = torch.promote_types(g1.dtype, torch.float32)
        kept = (z if keep else _empty(x.dtype) for z, keep in ((z1, keep1), (z2, keep2)))
        return call.out(y), *(s.to(dtype) for s in statistics), *kept

    def residual_block_backward(self, grad, x, w1, b1, g1, be1, mean1, var1, z1, w2, b2, g2, be2, mean2, var2,
                                z2, training, eps, need_x):
        call = self._call(x)
        parameters = (w1, b1, g1, be1, w2, b2, g2, be2)
        d = call.new_like(*parameters)
        kept = [z.numel() > 0 for z in (z1, z2)]
        z1, z2 = (z if there else call.new_map(x, w.shape[0]) for z, there, w in zip((z1, z2), kept, (w1, w2)))
        scratch = call.new_map(x, w1.shape[0])
        dx = call.new_map(x, x.shape[1]) if need_x else None
        self._cpu.residual_block_backward(
            torch.get_num_threads(), call.map(grad), call.any_map(x), call.arrays(w1, b1, g1, be1, mean1, var1),
            call.arrays(w2, b2, g2, be2, mean2, var2), [call.map(z1), call.map(z2), _view(scratch)], kept, _view(dx),
            _views(d[:4]), _views(d[4:]), training, eps)
        return call.out(dx), *_narrow(d, parameters)

    def reconstruct(self, x, w1, b1, w2, b2, w3, b3, save):
        call = self._call(x)
        n, _, h, w = x.shape
        y = torch.empty((n, 1, h, w), dtype=call.compute)
        taps = torch.empty((n, 9, h, w), dtype=call.compute)
        h1, h2 = (call.new_map(x, t.shape[0]) if save else None for t in (w1, w2))
        self._cpu.reconstruct(torch.get_num_threads(), call.any_map(x), call.arrays(w1, b1, w2, b2),
                              call.array(w3), call.array(b3), _view(taps), _view(y), _view(h1), _view(h2))
        kept = (call.out(h1), call.out(h2)) if save else (_empty(x.dtype), _empty(x.dtype))
        return call.out(y), *kept

    def reconstruct_backward(self, grad, x, h1, h2, w1, w2, w3, need_x):
        call = self._call(x)
        d = [t for w in (w1, w2, w3) for t in call.new_like(w, w.new_empty(w.shape[0]))]
        dx = call.new_map(x, x.shape[1]) if need_x else None
        self._cpu.reconstruct_backward(
            torch.get_num_threads(), call.map(grad), call.any_map(x), call.map(h1), call.map(h2),
            *call.arrays(w1, w2, w3), _view(dx), _views(d))
        return call.out(dx), *_narrow(d, (w1, w1, w2, w2, w3, w3))

    def network(self, folded: FoldedNetwork, precision, device):
        reason = self.unavailable(device) or self.precisions(device).get(precision, "there is no such level")
        if reason is not None:
            raise ValueError(f"backend 'cpu' does not offer precision {precision!r} on {device}: {reason}")
        return CpuNetwork(self._cpu, folded, precision)

    def fingerprint(self, tensors) -> int:
        """64-bit hash of the values of tensors on the CPU; about a millisecond for a whole DBLRNet."""
        tensors = [t if t.is_contiguous() else t.detach().contiguous() for t in tensors]
        return self._cpu.fingerprint([(t.data_ptr(), t.numel() * t.element_size()) for t in tensors])


class CpuNetwork:
    """A folded network in C++; see backends.protocol.Network. May be called from several threads at once."""

    def __init__(self, cpu, folded: FoldedNetwork, precision: str):
        call = _Call(folded.tail[0].new_empty(0, dtype=torch.float32), keep_bf16=False)
        w1, b1, w2, b2 = folded.stem
        planar1, bias1, planar2 = planar_stem(w1, b1, w2)
        self._network = cpu.Network(
            torch.get_num_threads(), call.arrays(planar1, bias1, planar2, b2),
            [tuple(call.arrays(*pair)) for pair in folded.body], call.arrays(*folded.tail[:4]),
            *call.arrays(*folded.tail[4:]), folded.tail_skip, precision)
        self._spare: list[Tensor] = []  # workspaces not in use; as many as there were calls at a time

    def workspace_bytes(self, height, width, most=None):
        return sum(self._bytes(height, width, (0, height, 0, width), most))

    def _bytes(self, height, width, valid, most) -> tuple[int, int]:
        """What maps take, the fewer rows at a time the less is there for them, and what threads take beside."""
        threads = torch.get_num_threads() * self._network.thread_bytes(height, width, valid)
        left = sys.maxsize if most is None else max(most - threads, 0)
        return self._network.workspace_bytes(height, width, valid, left), threads

    def __call__(self, frames, valid, most=None):
        y0, y1, x0, x1 = valid
        h, w = frames.shape[2:]
        frames = frames.detach().float()
        out = torch.empty((1, 1, y1 - y0, x1 - x0), dtype=torch.float32)
        size = self._bytes(h, w, valid, most)[0]
        workspace = self._workspace(size)
        try:
            self._network.run(torch.get_num_threads(), _view(frames), valid, workspace.data_ptr(), size, _view(out))
        finally:
            self._spare.append(workspace)
        return out

    def _workspace(self, size: int) -> Tensor:
        try:
            workspace = self._spare.pop()
        except IndexError:
            workspace = None
        if workspace is None or workspace.numel() < size:
            del workspace  # first give back what is too small
            try:
                workspace = torch.empty(size, dtype=torch.uint8)
            except RuntimeError as error:
                raise MemoryError(f"the network's maps need {size >> 20} MiB, and they could not be had") from error
        return workspace
