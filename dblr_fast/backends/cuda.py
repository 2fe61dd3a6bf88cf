"""The ops and the network in CUDA (csrc/cuda), through the extension module dblr_fast._cuda.

Here tensors become addresses, sizes and kinds of elements, and all memory comes from torch's allocator: work goes to
the current stream of the tensors' device. float16 and bfloat16 run as they are, with float32 sums. float32 runs exactly
at precision `exact`, in TF32 at `fast`, and has its maps converted on the way in and out at `half` and `bf16`.
Channels that do not fill 16 bytes are filled up with zeros, and cut off again.
"""

from __future__ import annotations

import os
from contextlib import nullcontext

import torch
from torch import Tensor

from .cuda_call import KINDS, LEVELS, Call, middle_of, padded
from .cuda_network import CudaNetwork
from .planar import planar_stem, stem_gradients
from .protocol import FoldedNetwork

MISSING = ("dblr_fast was built without its CUDA library ({}); install it again with DBLR_FAST_CUDA=on and nvcc in "
           "PATH, or take the torch backend")


def _load():
    """(extension module, None) or (None, why it cannot be used). Touches no driver."""
    try:
        from .. import _cuda
    except ImportError as error:
        return None, MISSING.format(error)
    return _cuda, None


def _refused(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("off", "0", "false", "no")


def _addresses(tensors):
    return [t.data_ptr() for t in tensors]


def _cut(t: Tensor, like: Tensor) -> Tensor:
    """A gradient in its parameter's shape and type."""
    if t.shape != like.shape:
        for dim, size in enumerate(like.shape):
            t = t.narrow(dim, 0, size)
    if t.dtype != like.dtype:
        t = t.to(like.dtype)
    return t.contiguous()


def _layer_gradient(gradient, weight, bias, gamma, beta, training):
    dweight, dgamma, dbeta, scale = gradient
    dbias = torch.zeros_like(bias) if training else _cut(dbeta * scale, bias)
    return _cut(dweight, weight), dbias, _cut(dgamma, gamma), _cut(dbeta, beta)


class CudaBackend:
    """See backends.protocol.Backend.

    module: the extension to run on, None for dblr_fast._cuda. emulated: it takes tensors on the CPU.
    """

    name = "cuda"
    rounds_parameters = True
    dtypes = tuple(KINDS)

    def __init__(self, module=None, emulated: bool = False, level: str = "exact"):
        self.module, self._reason = (module, None) if module is not None else _load()
        self.emulated, self.level = emulated, level
        self._checked: dict[int, str | None] = {}
        self._capabilities: dict[int, tuple[int, int]] = {}

    def at(self, precision: str) -> CudaBackend:
        """This backend, computing at a level of precision."""
        if precision == self.level:
            return self
        bound = CudaBackend.__new__(CudaBackend)
        bound.__dict__.update(self.__dict__, level=precision)
        return bound

    # ---- what there is ----

    def unavailable(self, device=None):
        if self._reason is not None:
            return self._reason
        device = None if device is None else torch.device(device)
        wanted = "cpu" if self.emulated else "cuda"
        if device is not None and device.type != wanted:
            return (f"the CUDA kernels take tensors on a GPU, these are on {device}; move them, or take the cpu or the "
                    f"torch backend")
        if self.emulated:
            return None
        if device is not None and device.index in self._checked:
            return self._checked[device.index]  # asked at every op: what was found once is not looked for again
        if not torch.cuda.is_available():
            return self._no_device()
        index = device.index if device is not None and device.index is not None else torch.cuda.current_device()
        if torch.cuda.is_current_stream_capturing() and index not in self._checked:
            return None  # nothing may be allocated or waited for now
        if index not in self._checked:
            self._checked[index] = self._check(index)
        return self._checked[index]

    def _no_device(self) -> str:
        if torch.version.cuda is None:
            return "this torch is built without CUDA; install one that is, or take the cpu or the torch backend"
        reason = self.module.devices()[1] or "torch finds no GPU that it can use"
        return f"{reason}; install the driver of an NVIDIA GPU, or take the cpu or the torch backend"

    def _check(self, index: int) -> str | None:
        major, minor = torch.cuda.get_device_capability(index)
        if major < 8:
            return (f"the CUDA kernels need a GPU of compute capability 8.0 or later, cuda:{index} has "
                    f"{major}.{minor}; take the torch backend")
        reason = self.module.self_check(index)
        return None if reason is None else (
            f"a test kernel failed on cuda:{index} ({reason}); build dblr_fast for this GPU (DBLR_FAST_CUDA_ARCHS), or "
            f"take the torch backend")

    def precisions(self, device=None):
        return dict.fromkeys(LEVELS)

    def uses_sm90(self, device) -> bool:
        """Whether the kernels for compute capability 9.0 run where they can: see `kernels`."""
        if _refused("DBLR_FAST_SM90") or "90a" not in self.module.built_archs():
            return False
        return self._capability(device) == (9, 0)

    def _capability(self, device) -> tuple[int, int]:
        if self.emulated:
            return tuple(self.module.device_facts()["capability"])
        index = torch.device(device).index
        if index is None:
            index = torch.cuda.current_device()
        if index not in self._capabilities:
            self._capabilities[index] = torch.cuda.get_device_capability(index)
        return self._capabilities[index]

    def kernels(self, device) -> str:
        """Which kernels a device runs, and why, in a few words."""
        if self._capability(device) != (9, 0):
            return "portable kernels (those for sm_90a run on compute capability 9.0 alone)"
        if "90a" not in self.module.built_archs():
            return "portable kernels (built without sm_90a: DBLR_FAST_CUDA_ARCHS)"
        if _refused("DBLR_FAST_SM90"):
            return "portable kernels (DBLR_FAST_SM90=off)"
        return "sm_90a kernels where they take a layer in 16 bits, else portable ones (DBLR_FAST_SM90=off: those alone)"

    # ---- device, stream, memory ----

    def stream(self, device) -> int:
        return 0 if self.emulated else torch.cuda.current_stream(device).cuda_stream

    def on(self, device):
        """Context in which `device` is the current one."""
        return nullcontext() if self.emulated else torch.cuda.device(device)

    def allocate(self, size: int, device) -> Tensor:
        return torch.empty(size // 4 + 4, dtype=torch.float32, device=device)

    # ---- ops ----

    def stem(self, x, w1, b1, w2, b2):
        with self.on(x.device):
            call = Call(self, x, self.level)
            w1, b1, w2 = planar_stem(w1, b1, w2)
            middle, y = middle_of(w1.shape[0], call.unit, call.sm90), call.new_map(x, w2.shape[0])
            self.module.stem(call.call, call.allocate, call.planes(x), call.weight(w1, middle, w1.shape[1]),
                             call.vector(b1, middle), call.weight(w2, None, middle), call.vector(b2), call.tuple_of(y))
            return call.out(y, w2.shape[0])

    def stem_backward(self, grad, x, y, w1, b1, w2, need_x):
        with self.on(x.device):
            call = Call(self, x, self.level)
            planar1, bias1, planar2 = planar_stem(w1, b1, w2)
            frames, width = call.up(planar1.shape[1]), call.up(planar2.shape[0])
            middle = middle_of(planar1.shape[0], call.unit, call.sm90)
            dw1, dw2 = call.new(middle, frames, 3, 3), call.new(width, middle, 3, 3)
            db1, db2 = call.new(middle), call.new(width)
            dx = call.new_map(x, x.shape[1]) if need_x else None
            self.module.stem_backward(
                call.call, call.allocate, call.map(grad), call.planes(x), call.map(y), call.weight(planar1, middle),
                call.vector(bias1, middle), call.weight(planar2, width, middle), call.tuple_of(dx),
                _addresses((dw1, db1, dw2, db2)))
            dw1, db1, dw2 = dw1[:planar1.shape[0], :planar1.shape[1]], db1[:len(bias1)], _cut(dw2, planar2)
            dw1, db1, dw2 = stem_gradients(dw1, db1, dw2, w1, w2)
            dx = None if dx is None else dx[..., :x.shape[1]].permute(0, 3, 1, 2).to(x.dtype).contiguous()
            return (dx, dw1.to(w1.dtype).contiguous(), db1.to(b1.dtype), dw2,
                    db2[:w2.shape[0]].to(b1.dtype).contiguous())

    def conv_bn_act(self, x, weight, bias, gamma, beta, running_mean, running_var, residual, relu, training, eps, save):
        with self.on(x.device):
            call, out = Call(self, x, self.level), weight.shape[0]
            y, z = call.new_map(x, out), call.new_map(x, out) if save else None
            mean, var = (call.new(call.up(out)) for _ in range(2)) if training else (None, None)
            self.module.conv_bn_act(
                call.call, call.allocate, call.map(x), call.layer(weight, bias, gamma, beta, running_mean, running_var),
                call.map(residual), relu, training, eps, call.tuple_of(y), call.tuple_of(z),
                *(_addresses((mean, var)) if training else (0, 0)))
            return call.out(y, out), *self._statistics(gamma, (mean, var), training), *self._saved(call, x, (z, out))

    def conv_bn_act_backward(self, grad, x, weight, bias, gamma, beta, mean, var, z, relu, training, eps, need_x):
        with self.on(x.device):
            call = Call(self, x, self.level)
            gradient = call.new_gradient(weight)
            dx = call.new_map(x, x.shape[1]) if need_x else None
            self.module.conv_bn_act_backward(
                call.call, call.allocate, call.map(grad), call.map(x), call.layer(weight, bias, gamma, beta, mean, var),
                call.map(z), relu, training, eps, call.tuple_of(dx), _addresses(gradient))
            return call.out(dx, x.shape[1]), *_layer_gradient(gradient, weight, bias, gamma, beta, training)

    def keeps_block_maps(self, x, save):
        return save > 0, save > 0

    def residual_block(self, x, w1, b1, g1, be1, rm1, rv1, w2, b2, g2, be2, rm2, rv2, training, eps, save):
        with self.on(x.device):
            call, middle, out = Call(self, x, self.level), w1.shape[0], w2.shape[0]
            y = call.new_map(x, out)
            z1, z2 = (call.new_map(x, middle), call.new_map(x, out)) if save else (None, None)
            statistics = [call.new(call.up(c)) if training else None for c in (middle, middle, out, out)]
            self.module.residual_block(
                call.call, call.allocate, call.map(x), call.layer(w1, b1, g1, be1, rm1, rv1),
                call.layer(w2, b2, g2, be2, rm2, rv2), training, eps, *map(call.tuple_of, (y, z1, z2)),
                _addresses(statistics) if training else [0] * 4)
            return (call.out(y, out), *self._statistics(g1, statistics[:2], training),
                    *self._statistics(g2, statistics[2:], training), *self._saved(call, x, (z1, middle), (z2, out)))

    def residual_block_backward(self, grad, x, w1, b1, g1, be1, mean1, var1, z1, w2, b2, g2, be2, mean2, var2, z2,
                                training, eps, need_x):
        with self.on(x.device):
            call = Call(self, x, self.level)
            gradient1, gradient2 = call.new_gradient(w1), call.new_gradient(w2)
            dx = call.new_map(x, x.shape[1]) if need_x else None
            self.module.residual_block_backward(
                call.call, call.allocate, call.map(grad), call.map(x), call.layer(w1, b1, g1, be1, mean1, var1),
                call.map(z1), call.layer(w2, b2, g2, be2, mean2, var2), call.map(z2), training, eps, call.tuple_of(dx),
                _addresses(gradient1), _addresses(gradient2))
            return (call.out(dx, x.shape[1]), *_layer_gradient(gradient1, w1, b1, g1, be1, training),
                    *_layer_gradient(gradient2, w2, b2, g2, be2, training))

    def reconstruct(self, x, w1, b1, w2, b2, w3, b3, save):
        with self.on(x.device):
            call, middle, last = Call(self, x, self.level), w1.shape[0], w2.shape[0]
            n, _, h, w = x.shape
            y = torch.empty((n, 1, h, w), dtype=x.dtype, device=x.device)
            h1, h2 = (call.new_map(x, middle), call.new_map(x, last)) if save else (None, None)
            self.module.reconstruct(
                call.call, call.allocate, call.map(x), call.weight(w1), call.vector(b1), call.weight(w2),
                call.vector(b2), self._taps(call, w3), call.vector(b3, 1), y.data_ptr(), KINDS[y.dtype],
                call.tuple_of(h1), call.tuple_of(h2))
            return y, *self._saved(call, x, (h1, middle), (h2, last))

    def reconstruct_backward(self, grad, x, h1, h2, w1, w2, w3, need_x):
        with self.on(x.device):
            call = Call(self, x, self.level)
            grad = call.keep(grad.detach().contiguous())
            d = [call.new_weight(w1), call.new(call.up(w1.shape[0])), call.new_weight(w2),
                 call.new(call.up(w2.shape[0])), call.new(9, call.up(w3.shape[1])), call.new(1)]
            dx = call.new_map(x, x.shape[1]) if need_x else None
            self.module.reconstruct_backward(
                call.call, call.allocate, grad.data_ptr(), KINDS[grad.dtype], call.map(x), call.map(h1), call.map(h2),
                call.weight(w1), call.weight(w2), self._taps(call, w3), call.tuple_of(dx), _addresses(d))
            dw1, db1, dw2, db2, dtaps, db3 = d
            dw3 = dtaps[:, :w3.shape[1]].t().reshape(w3.shape)
            return (call.out(dx, x.shape[1]), _cut(dw1, w1), _cut(db1, w1[:, 0, 0, 0]), _cut(dw2, w2),
                    _cut(db2, w2[:, 0, 0, 0]), _cut(dw3, w3), db3.to(w3.dtype))

    @staticmethod
    def _taps(call: Call, w3: Tensor) -> int:
        """L35's weights as float32 (9, channels)."""
        channels = call.up(w3.shape[1])
        return call.keep(padded(w3.detach().float().reshape(-1, 9).t(), 9, channels).contiguous()).data_ptr()

    @staticmethod
    def _statistics(gamma, statistics, training):
        if not training:
            return tuple(gamma.new_empty(0, dtype=torch.float32) for _ in statistics)
        return tuple(t if t.shape == gamma.shape else t[:gamma.shape[0]].contiguous() for t in statistics)

    @staticmethod
    def _saved(call, x, *maps):
        return tuple(x.new_empty(0) if t is None else call.out(t, channels) for t, channels in maps)

    # ---- the network ----

    def network(self, folded: FoldedNetwork, precision, device):
        device = torch.device(device)
        reason = self.unavailable(device) or (None if precision in LEVELS else "there is no such level")
        if reason is not None:
            raise ValueError(f"backend 'cuda' does not offer precision {precision!r} on {device}: {reason}")
        return CudaNetwork(self, folded, precision, device)
