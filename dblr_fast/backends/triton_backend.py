"""The ops and the network as Triton kernels (dblr_fast.triton_kernels): a GPU path with no compiler but Triton's.

Here maps become dense (N, H, W, C) tensors, and each op becomes a row of launches on the current stream of the
tensors' device. float32 multiplies exactly, or as TF32 at precision `fast`; float16 and bfloat16 multiply as they are;
every sum is float32.
"""

from __future__ import annotations

import functools
import threading
from contextlib import nullcontext

import torch
from torch import Tensor

from .cpu import _narrow
from .graphed import RecordedIfPossible
from .planar import planar_stem, stem_gradients
from .protocol import FoldedNetwork

CL = torch.channels_last
RECORDED = 1 << 30  # bytes of maps up to which a network is replayed; beyond, kernels take longer than the host
LEVELS = {"exact": torch.float32, "fast": torch.float32, "half": torch.float16, "bf16": torch.bfloat16}


def _load():
    """(the kernels' modules, None) or (None, why they cannot be used)."""
    try:
        from .. import triton_kernels
        from ..triton_kernels import common, convolution, norm, planes, weight_gradient  # noqa: F401
    except ImportError as error:
        return None, (f"Triton cannot be imported ({error}); install it with `pip install triton`, or take the torch "
                      f"backend")
    return triton_kernels, None


def _pixels(t: Tensor) -> Tensor:
    """A map (N, C, H, W) in any strides as a dense (N, H, W, C)."""
    return t.contiguous(memory_format=CL).permute(0, 2, 3, 1).contiguous()


def _map(t: Tensor | None) -> Tensor | None:
    """The (N, C, H, W) of a dense (N, H, W, C), channels_last."""
    return None if t is None else t.permute(0, 3, 1, 2)


def _float(*tensors: Tensor) -> list[Tensor]:
    return [t.float().contiguous() for t in tensors]


def _on_device(method):
    """Runs an op on its first tensor's device; at `half` and `bf16` converts float32 maps on the way in and out."""
    @functools.wraps(method)
    def wrapped(self, first, *args):
        if first.dtype not in self.dtypes:
            raise RuntimeError(f"backend 'triton' takes float32, float16 and bfloat16, got {first.dtype}; convert it, "
                               f"or take the torch backend")
        with torch.cuda.device(first.device) if first.is_cuda else nullcontext():
            narrow = LEVELS[self.level]
            if first.dtype != torch.float32 or narrow == torch.float32:
                return method(self, first, *args)

            def is_map(t):
                return isinstance(t, Tensor) and t.dim() == 4 and t.shape[2:] == first.shape[2:]

            results = method(self, *(t.to(narrow) if is_map(t) else t for t in (first, *args)))
            if isinstance(results, Tensor):
                return results.float()
            return tuple(t.float() if isinstance(t, Tensor) and t.dtype == narrow else t for t in results)
    return wrapped


class TritonBackend:
    """See backends.protocol.Backend."""

    name = "triton"
    rounds_parameters = False
    dtypes = (torch.float32, torch.float16, torch.bfloat16)

    def __init__(self, level: str = "exact"):
        self._kernels, self._reason = _load()
        self.level, self._tf32 = level, level == "fast"

    def at(self, precision: str) -> "TritonBackend":
        """This backend, computing at a level of precision."""
        return self if precision == self.level else TritonBackend(precision)

    def unavailable(self, device=None):
        if self._reason is not None:
            return self._reason
        if self._kernels.common.INTERPRETED:
            if device is not None and torch.device(device).type != "cpu":
                return f"Triton's interpreter (TRITON_INTERPRET=1) takes tensors on the CPU, these are on {device}"
            return None
        if device is not None and torch.device(device).type != "cuda":
            return f"Triton's kernels take tensors on a GPU, these are on {device}; move them, or take cpu or torch"
        if not torch.cuda.is_available():
            return "torch finds no GPU to run Triton's kernels on; take the cpu or the torch backend"
        if torch.version.hip is None and torch.cuda.get_device_capability(device)[0] < 8:
            return "Triton's kernels need a GPU of compute capability 8.0 or later; take the torch backend"
        return None

    def precisions(self, device=None):
        return dict.fromkeys(LEVELS)

    # ---- ops ----

    @_on_device
    def stem(self, x, w1, b1, w2, b2):
        w1, b1, w2 = planar_stem(w1, b1, w2)
        middle = self._middle(x, w1, b1)
        return _map(self._convolve(middle, self._pack(w2, x), shift=b2.float(), relu=True).y)

    def _middle(self, x, w1, b1):
        planes = self._kernels.planes
        return planes.convolve_planes(x, planes.pack_planes(w1, x.dtype), w1.shape[0], bias=b1.float(), relu=True,
                                      tf32=self._tf32)[0]

    @_on_device
    def stem_backward(self, grad, x, y, w1, b1, w2, need_x):
        kernels = self._kernels
        planar1, bias1, planar2 = planar_stem(w1, b1, w2)
        middle, y = self._middle(x, planar1, bias1), _pixels(y)
        d2 = torch.empty_like(y)
        db2, _ = kernels.norm.backward_sums(_pixels(grad), y, None, "sign", masked=d2)
        dw2 = self._weight_gradient(middle, d2, torch.float32)
        d1 = self._convolve(d2, self._pack(planar2, x, adjoint=True), mask=middle, sums="total")
        db1, _ = kernels.norm.sums(d1.partial)
        dw1 = kernels.planes.planes_gradient(x, d1.y, tf32=self._tf32)
        dx = None
        if need_x:
            dx = _map(self._convolve(d1.y, self._pack(planar1, x, adjoint=True)).y).contiguous()
        dw1, db1, dw2 = stem_gradients(dw1, db1, dw2, w1, w2)
        return dx, dw1.to(w1.dtype), db1.to(b1.dtype), dw2.to(w2.dtype), db2.to(b1.dtype)

    @_on_device
    def conv_bn_act(self, x, weight, bias, gamma, beta, running_mean, running_var, residual, relu, training, eps, save):
        norms, weights = self._kernels.norm, self._pack(weight, x)
        residual = None if residual is None else _pixels(residual)
        vectors = _float(gamma, beta)
        if training:
            z, mean, var, norm = self._statistics(_pixels(x), weights, *vectors, eps)
            y = norms.apply(z, norm, relu, residual)
            return _map(y), *self._kept(gamma, mean, var), _map(z) if save else x.new_empty(0)
        norm = norms.coefficients(*vectors, *_float(bias, running_mean, running_var), False, eps)
        nothing = self._kept(gamma, *(torch.empty(0, device=x.device) for _ in range(2)))
        if save:
            z = self._convolve(_pixels(x), weights).y
            return _map(norms.apply(z, norm, relu, residual)), *nothing, _map(z)
        y = self._convolve(_pixels(x), weights, scale=norm.scale, shift=norm.shift, relu=relu,
                           add=() if residual is None else (residual,)).y
        return _map(y), *nothing, x.new_empty(0)

    @_on_device
    def conv_bn_act_backward(self, grad, x, weight, bias, gamma, beta, mean, var, z, relu, training, eps, need_x):
        norm = self._kernels.norm.coefficients(*_float(gamma, beta, bias, mean, var), training, eps)
        dz, dbias, dgamma, dbeta = self._norm_backward(_pixels(grad), _pixels(z), norm, relu, training)
        dw = self._weight_gradient(_pixels(x), dz, weight.dtype)
        dx = _map(self._convolve(dz, self._pack(weight, x, adjoint=True)).y) if need_x else None
        return dx, dw, *_narrow((dbias, dgamma, dbeta), (bias, gamma, beta))

    def keeps_block_maps(self, x, save):
        return save > 0, save > 0

    @_on_device
    def residual_block(self, x, w1, b1, g1, be1, rm1, rv1, w2, b2, g2, be2, rm2, rv2, training, eps, save):
        norms, entry = self._kernels.norm, _pixels(x)
        weights1, weights2 = self._pack(w1, x), self._pack(w2, x)
        first, second = _float(g1, be1), _float(g2, be2)
        if training:
            z1, mean1, var1, norm1 = self._statistics(entry, weights1, *first, eps)
            z2, mean2, var2, norm2 = self._statistics(z1, weights2, *second, eps, norm_in=norm1, relu_in=True)
            y = norms.apply(z2, norm2, False, entry)
            statistics = (*self._kept(g1, mean1, var1), *self._kept(g2, mean2, var2))
        else:
            norm1 = norms.coefficients(*first, *_float(b1, rm1, rv1), False, eps)
            norm2 = norms.coefficients(*second, *_float(b2, rm2, rv2), False, eps)
            statistics = self._kept(g1, *(torch.empty(0, device=x.device) for _ in range(4)))
            if save:
                z1 = self._convolve(entry, weights1).y
                z2 = self._convolve(z1, weights2, norm_in=norm1, relu_in=True).y
                y = norms.apply(z2, norm2, False, entry)
            else:
                y1 = self._convolve(entry, weights1, scale=norm1.scale, shift=norm1.shift, relu=True).y
                y = self._convolve(y1, weights2, scale=norm2.scale, shift=norm2.shift, add=(entry,)).y
        z = (_map(z1), _map(z2)) if save else (x.new_empty(0), x.new_empty(0))
        return _map(y), *statistics, *z

    @_on_device
    def residual_block_backward(self, grad, x, w1, b1, g1, be1, mean1, var1, z1, w2, b2, g2, be2, mean2, var2, z2,
                                training, eps, need_x):
        norms = self._kernels.norm
        norm1 = norms.coefficients(*_float(g1, be1, b1, mean1, var1), training, eps)
        norm2 = norms.coefficients(*_float(g2, be2, b2, mean2, var2), training, eps)
        grad, z1 = _pixels(grad), _pixels(z1)
        dz2, db2, dg2, dbe2 = self._norm_backward(grad, _pixels(z2), norm2, False, training)
        # The map between the two convolutions is not kept: it is made again where z1 is read.
        dw2 = self._weight_gradient(z1, dz2, w2.dtype, norm_in=norm1, relu_in=True)
        d1 = self._convolve(dz2, self._pack(w2, x, adjoint=True), mask=z1, mask_norm=norm1, sums="normalised")
        dz1, db1, dg1, dbe1 = self._norm_backward(d1.y, z1, norm1, False, training, norms.sums(d1.partial))
        dw1 = self._weight_gradient(_pixels(x), dz1, w1.dtype)
        dx = _map(self._convolve(dz1, self._pack(w1, x, adjoint=True), add=(grad,)).y) if need_x else None
        return (dx, dw1, *_narrow((db1, dg1, dbe1), (b1, g1, be1)),
                dw2, *_narrow((db2, dg2, dbe2), (b2, g2, be2)))

    @_on_device
    def reconstruct(self, x, w1, b1, w2, b2, w3, b3, save):
        planes = self._kernels.planes
        h1 = self._convolve(_pixels(x), self._pack(w1, x), shift=b1.float(), relu=True).y
        last = self._convolve(h1, self._pack(w2, x), shift=b2.float(), relu=True, keep=save,
                                     tap_weights=self._kernels.convolution.pack_taps(w3, x.dtype))
        y = planes.sum_taps(last.taps, b3, x.dtype)
        return (y, _map(h1), _map(last.y)) if save else (y, x.new_empty(0), x.new_empty(0))

    @_on_device
    def reconstruct_backward(self, grad, x, h1, h2, w1, w2, w3, need_x):
        norm, planes = self._kernels.norm, self._kernels.planes
        grad, h1, h2, tf32 = grad.contiguous(), _pixels(h1), _pixels(h2), self._tf32
        turned = w3.transpose(0, 1).flip(2, 3)  # (K, 1, 3, 3): the gradient of L35 is a convolution of one plane
        d2, partial = planes.convolve_planes(grad, planes.pack_planes(turned, x.dtype), w3.shape[1], mask=h2, sums=True,
                                             tf32=tf32)
        db2, _ = norm.sums(partial)
        dw3 = planes.planes_gradient(grad, h2, tf32=tf32).flip(2, 3).transpose(0, 1).contiguous()
        dw2 = self._weight_gradient(h1, d2, w2.dtype)
        d1 = self._convolve(d2, self._pack(w2, x, adjoint=True), mask=h1, sums="total")
        db1, _ = norm.sums(d1.partial)
        dw1 = self._weight_gradient(_pixels(x), d1.y, w1.dtype)
        dx = _map(self._convolve(d1.y, self._pack(w1, x, adjoint=True)).y) if need_x else None
        return (dx, dw1, db1.to(w1.dtype), dw2, db2.to(w2.dtype), dw3.to(w3.dtype),
                grad.sum((0, 2, 3)).to(w3.dtype))

    # ---- what the ops share ----

    def _pack(self, weight, x, adjoint=False):
        return self._kernels.convolution.pack_weights(weight, x.dtype, adjoint)

    def _convolve(self, *args, **kwargs):
        return self._kernels.convolution.convolve(*args, tf32=self._tf32, **kwargs)

    def _weight_gradient(self, x, dy, dtype, **kwargs):
        return self._kernels.weight_gradient.weight_gradient(x, dy, dtype=dtype, tf32=self._tf32, **kwargs)

    def _statistics(self, x, weights, gamma, beta, eps, **prologue):
        """(z, mean, variance, coefficients) of a convolution and the batch norm behind it."""
        z = self._convolve(x, weights, sums="statistics", **prologue)
        pixels = z.y.numel() // z.y.shape[-1]
        return z.y, *self._kernels.norm.statistics(z.partial, pixels, z.tile, gamma, beta, eps)

    def _norm_backward(self, grad, z, norm, relu, training, sums=None):
        """(dz, dbias, dgamma, dbeta) of a batch norm and its ReLU; sums: (dbeta, dgamma) where they are known."""
        mask = "norm" if relu else "none"
        dbeta, dgamma = sums or self._kernels.norm.backward_sums(grad, z, norm, mask)
        dz = self._kernels.norm.backward_apply(grad, z, norm, dbeta, dgamma, mask, training)
        # In training batch norm removes what a bias adds.
        return dz, torch.zeros_like(dbeta) if training else norm.scale * dbeta, dgamma, dbeta

    @staticmethod
    def _kept(gamma, *statistics):
        dtype = torch.promote_types(gamma.dtype, torch.float32)
        return tuple(s.to(dtype) for s in statistics)

    def network(self, folded: FoldedNetwork, precision, device):
        device = torch.device(device)
        reason = self.unavailable(device) or self.precisions(device).get(precision, "there is no such level")
        if reason is not None:
            raise ValueError(f"backend 'triton' does not offer precision {precision!r} on {device}: {reason}")
        return TritonNetwork(self._kernels, folded, precision, device)


class TritonNetwork:
    """A folded network as Triton kernels; see backends.protocol.Network. May be called from several threads at once.

    On a GPU the first run of a size launches kernel by kernel (and chooses configurations), the second records a CUDA
    graph, and those after it replay it, up to sizes for which the host is no bottleneck; DBLR_FAST_GRAPHS=off leaves all
    launches plain. Replays from different streams wait for one another on the device.
    """

    def __init__(self, kernels, folded: FoldedNetwork, precision, device):
        self.kernels, self.device, self.dtype = kernels, device, LEVELS[precision]
        self.tf32, self.tail_skip = precision == "fast", folded.tail_skip
        self.graphs, self._lock = RecordedIfPossible(device), threading.Lock()
        with torch.no_grad(), self._here():
            w1, b1, w2, b2 = (t.to(device) for t in folded.stem)
            w1, b1, w2 = planar_stem(w1, b1, w2)
            self.first = kernels.planes.pack_planes(w1, self.dtype), w1.shape[0], *_float(b1)
            self.second = self._layer(w2, b2)
            self.body = [self._layer(*pair) for pair in folded.body]
            w1, b1, w2, b2, w3, b3 = (t.to(device) for t in folded.tail)
            self.wide, self.last = self._layer(w1, b1), self._layer(w2, b2)
            self.tap_weights, self.tail_bias = kernels.convolution.pack_taps(w3, self.dtype), *_float(b3)

    def _here(self):
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _layer(self, weight, bias):
        return self.kernels.convolution.pack_weights(weight.to(self.device), self.dtype), *_float(bias.to(self.device))

    def workspace_bytes(self, height, width, most=None):
        # L34 holds the most: its input, L33's output, and nine planes for each block of channels; or, within the
        # body, four maps.
        narrow, wide = self.wide[0].inner, self.last[0].inner
        blocks = self.kernels.convolution.blocks_of_taps(self.last[0], self.tf32)
        size = self.dtype.itemsize
        return height * width * max((narrow + wide) * size + 36 * blocks, 4 * narrow * size)

    def __call__(self, frames, valid, most=None):
        with torch.no_grad(), self._here():
            frames = frames.detach().to(self.device)
            if not self._may_record(frames):
                return self._run(frames, valid)
            with self._lock, self.graphs.in_turn():
                graph = self.graphs.graph_of(frames, self._launch)
                if graph is None:
                    return self._run(frames, valid)
                y0, y1, x0, x1 = valid
                return graph.replay(frames)[:, :, y0:y1, x0:x1].clone()

    def _may_record(self, frames):
        if self.device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return False
        return self.workspace_bytes(*frames.shape[2:]) <= RECORDED

    def _launch(self, frames, out):
        out.copy_(self._run(frames, (0, frames.shape[2], 0, frames.shape[3])))

    def _convolve(self, x, layer, **epilogue):
        weights, bias = layer
        return self.kernels.convolution.convolve(x, weights, shift=bias, tf32=self.tf32, **epilogue)

    def _run(self, frames, valid):
        weights, channels, bias = self.first
        y = self.kernels.planes.convolve_planes(frames, weights, channels, bias=bias, relu=True, tf32=self.tf32)[0]
        y = skip = self._convolve(y, self.second, relu=True).y
        *blocks, (third, fourth) = zip(self.body[::2], self.body[1::2])
        for first, second in blocks:
            y = self._convolve(self._convolve(y, first, relu=True).y, second, add=(y,)).y
        add = (skip, y) if self.tail_skip else (skip,)
        y = self._convolve(self._convolve(y, third, relu=True).y, fourth, add=add).y
        del skip, add
        y = self._convolve(y, self.wide, relu=True).y
        taps = self._convolve(y, self.last, relu=True, keep=False, tap_weights=self.tap_weights).taps
        return self.kernels.planes.sum_taps(taps, self.tail_bias, torch.float32, valid)
