"""The ops in plain torch calls: runs wherever torch runs, and is what the other backends must beat."""

from __future__ import annotations

from contextlib import contextmanager

import torch
import torch.nn.functional as F

from .planar import planar_stem, stem_gradients
from .protocol import FoldedNetwork

CL = torch.channels_last


@contextmanager
def _float32_products(x, allow_tf32):
    """cuDNN takes TF32 for float32 convolutions unless told otherwise; `exact` means float32."""
    cudnn = torch.backends.cudnn
    if not x.is_cuda or x.dtype != torch.float32:
        yield
        return
    with cudnn.flags(enabled=cudnn.enabled, benchmark=cudnn.benchmark,
                     deterministic=cudnn.deterministic, allow_tf32=allow_tf32):
        yield


def _exact(method):
    def wrapped(self, first, *args, **kwargs):
        with _float32_products(first, False):
            return method(self, first, *args, **kwargs)
    wrapped.__doc__, wrapped.__name__ = method.__doc__, method.__name__
    return wrapped


def _conv_backward(grad, x, weight, need_x):
    """(dx or None, dweight, dbias) of a convolution with padding 1 in space and 0 in time."""
    dims = weight.dim() - 2
    padding = [0, 1, 1][-dims:]
    dx, dw, db = torch.ops.aten.convolution_backward(
        grad, x, weight, [weight.shape[0]], [1] * dims, padding, [1] * dims, False, [0] * dims, 1,
        [need_x, True, True])
    return (dx if need_x else None), dw.contiguous(), db


def _statistics_dtype(t):
    return torch.promote_types(t.dtype, torch.float32)


class TorchBackend:
    name = "torch"
    rounds_parameters = False

    def at(self, precision):
        return self

    def unavailable(self, device=None):
        return None

    def keeps_block_maps(self, x, save):
        return save > 0, save > 0

    def precisions(self, device=None):
        gpu = device is not None and device.type != "cpu"
        return {
            "exact": None,
            "fast": None if gpu else "TF32 is a GPU's; take exact",
            "half": None if gpu else "torch multiplies float16 slowly and inexactly on a CPU; take exact",
            "bf16": None,
        }

    @_exact
    def stem(self, x, w1, b1, w2, b2):
        return self._stem_middle(x, w1, b1, w2, b2)[1]

    @staticmethod
    def _stem_middle(x, w1, b1, w2, b2):
        if w1.dim() == 5:
            middle = F.relu(F.conv3d(x.unsqueeze(1), w1, b1, padding=(0, 1, 1)))
            y = F.conv3d(middle, w2, b2, padding=(0, 1, 1)).squeeze(2)
        else:
            middle = F.relu(F.conv2d(x, w1, b1, padding=1))
            y = F.conv2d(middle, w2, b2, padding=1)
        return middle, F.relu(y).contiguous(memory_format=CL)

    @_exact
    def stem_backward(self, grad, x, y, w1, b1, w2, need_x):
        if w1.dim() == 5 and x.device.type == "cpu" and x.dtype == torch.bfloat16:
            # On CPUs with AMX torch 2.13 crashes or hangs in the weight gradient of a 3-D convolution with one channel.
            dx, dw1, db1, dw2, db2 = self.stem_backward(grad, x, y, *planar_stem(w1, b1, w2), need_x)
            return dx, *stem_gradients(dw1, db1, dw2, w1, w2), db2
        if w1.dim() == 5:
            x5 = x.unsqueeze(1)
            middle = F.relu(F.conv3d(x5, w1, b1, padding=(0, 1, 1)))
            d2 = torch.where(y > 0, grad, 0).unsqueeze(2)
        else:
            x5 = x
            middle = F.relu(F.conv2d(x, w1, b1, padding=1))
            d2 = torch.where(y > 0, grad, 0)
        d1, dw2, db2 = _conv_backward(d2, middle, w2, True)
        dx, dw1, db1 = _conv_backward(torch.where(middle > 0, d1, 0), x5, w1, need_x)
        if dx is not None:
            dx = dx.reshape(x.shape).contiguous()
        return dx, dw1, db1, dw2, db2

    @_exact
    def conv_bn_act(self, x, weight, bias, gamma, beta, running_mean, running_var, residual, relu,
                    training, eps, save):
        z = F.conv2d(x, weight, None, padding=1).contiguous(memory_format=CL)
        empty = gamma.new_empty(0, dtype=_statistics_dtype(gamma))
        if training:
            var, mean = torch.var_mean(z.to(_statistics_dtype(z)), (0, 2, 3), correction=0)
            y = F.batch_norm(z, mean, var, gamma.to(mean.dtype), beta.to(mean.dtype), False, 0.0, eps)
            mean, var = mean.to(empty.dtype), var.to(empty.dtype)
        else:
            mean, var = empty, empty.clone()
            shifted = (running_mean - bias).to(running_var.dtype)
            y = F.batch_norm(z, shifted, running_var, gamma, beta, False, 0.0, eps)
        if relu:
            y = F.relu(y)
        if residual is not None:
            y = y + residual
        return y.contiguous(memory_format=CL), mean, var, z if save else z.new_empty(0)

    @_exact
    def conv_bn_act_backward(self, grad, x, weight, bias, gamma, beta, mean, var, z, relu, training, eps,
                             need_x):
        dtype = _statistics_dtype(z)
        gamma, beta, mean, var, bias = (t.to(dtype).view(1, -1, 1, 1) for t in (gamma, beta, mean, var, bias))
        invstd = torch.rsqrt(var + eps)
        xhat = (z.to(dtype) - (mean if training else mean - bias)) * invstd
        g = grad.to(dtype)
        if relu:
            g = torch.where(gamma * xhat + beta > 0, g, 0)
        dbeta = g.sum((0, 2, 3), keepdim=True)
        dgamma = (g * xhat).sum((0, 2, 3), keepdim=True)
        scale = gamma * invstd
        if training:
            count = z.numel() // z.shape[1]
            dz = scale * (g - (dbeta + xhat * dgamma) / count)
            dbias = torch.zeros_like(dbeta)
        else:
            dz = scale * g
            dbias = scale * dbeta
        dx, dw, _ = _conv_backward(dz.to(x.dtype).contiguous(memory_format=CL), x, weight, need_x)
        if dx is not None:
            dx = dx.contiguous(memory_format=CL)
        return dx, dw, dbias.flatten(), dgamma.flatten(), dbeta.flatten()

    def residual_block(self, x, w1, b1, g1, be1, rm1, rv1, w2, b2, g2, be2, rm2, rv2, training, eps, save):
        y, mean1, var1, z1 = self.conv_bn_act(x, w1, b1, g1, be1, rm1, rv1, None, True, training, eps, save)
        y, mean2, var2, z2 = self.conv_bn_act(y, w2, b2, g2, be2, rm2, rv2, x, False, training, eps, save)
        return y, mean1, var1, mean2, var2, z1, z2

    def residual_block_backward(self, grad, x, w1, b1, g1, be1, mean1, var1, z1, w2, b2, g2, be2, mean2,
                                var2, z2, training, eps, need_x):
        dtype = mean1.dtype
        # The map between the two convolutions is not kept: it is the first batch norm and ReLU of z1.
        shifted = mean1 if training else mean1 - b1.to(dtype)
        y1 = F.relu(F.batch_norm(z1, shifted.to(dtype), var1.to(dtype), g1.to(dtype), be1.to(dtype),
                                 False, 0.0, eps))
        dy1, dw2, db2, dg2, dbe2 = self.conv_bn_act_backward(
            grad, y1, w2, b2, g2, be2, mean2, var2, z2, False, training, eps, True)
        dx, dw1, db1, dg1, dbe1 = self.conv_bn_act_backward(
            dy1, x, w1, b1, g1, be1, mean1, var1, z1, True, training, eps, need_x)
        if need_x:
            dx = (dx + grad).contiguous(memory_format=CL)
        return dx, dw1, db1, dg1, dbe1, dw2, db2, dg2, dbe2

    @_exact
    def reconstruct(self, x, w1, b1, w2, b2, w3, b3, save):
        h1 = F.relu(F.conv2d(x, w1, b1, padding=1)).contiguous(memory_format=CL)
        h2 = F.relu(F.conv2d(h1, w2, b2, padding=1)).contiguous(memory_format=CL)
        y = F.conv2d(h2, w3, b3, padding=1).contiguous()
        return (y, h1, h2) if save else (y, x.new_empty(0), x.new_empty(0))

    @_exact
    def reconstruct_backward(self, grad, x, h1, h2, w1, w2, w3, need_x):
        d, dw3, db3 = _conv_backward(grad, h2, w3, True)
        d, dw2, db2 = _conv_backward(torch.where(h2 > 0, d, 0), h1, w2, True)
        dx, dw1, db1 = _conv_backward(torch.where(h1 > 0, d, 0), x, w1, need_x)
        if dx is not None:
            dx = dx.contiguous(memory_format=CL)
        return dx, dw1, db1, dw2, db2, dw3, db3

    def network(self, folded: FoldedNetwork, precision, device):
        return TorchNetwork(folded, precision, device)


class TorchNetwork:
    """A folded network in torch calls; see backends.protocol.Network."""

    DTYPES = {"exact": torch.float32, "fast": torch.float32, "half": torch.float16, "bf16": torch.bfloat16}

    def __init__(self, folded, precision, device):
        dtype = self.DTYPES[precision]

        def ready(*tensors):
            return tuple(
                t.to(device, dtype).contiguous(memory_format=CL if t.dim() == 4 else torch.contiguous_format)
                for t in tensors)

        self.dtype, self.device, self.allow_tf32 = dtype, device, precision == "fast"
        self.stem, self.tail = ready(*folded.stem), ready(*folded.tail)
        self.body = [ready(*pair) for pair in folded.body]
        self.tail_skip = folded.tail_skip

    def workspace_bytes(self, height, width, most=None):
        # L34 holds the most: its input and output, and one of them again while ReLU is not in place.
        channels = 2 * self.tail[0].shape[0] + 3 * self.tail[0].shape[1]
        return height * width * channels * self.dtype.itemsize

    def __call__(self, frames, valid, most=None):
        y0, y1, x0, x1 = valid
        with torch.no_grad(), _float32_products(frames, self.allow_tf32):
            out = self._run(frames.to(self.device, self.dtype))
            return out[:, :, y0:y1, x0:x1].float()

    def _run(self, frames):
        skip = TorchBackend._stem_middle(frames, *self.stem)[1]
        y = skip
        for (w1, b1), (w2, b2) in zip(self.body[:-2:2], self.body[1:-2:2]):
            y = F.conv2d(F.conv2d(y, w1, b1, padding=1).relu_(), w2, b2, padding=1).add_(y)
        if self.tail_skip:
            skip = skip + y
        (w1, b1), (w2, b2) = self.body[-2:]
        y = F.conv2d(F.conv2d(y, w1, b1, padding=1).relu_(), w2, b2, padding=1).add_(skip)
        w1, b1, w2, b2, w3, b3 = self.tail
        y = F.conv2d(y, w1, b1, padding=1).relu_()
        y = F.conv2d(y, w2, b2, padding=1).relu_()
        return F.conv2d(y, w3, b3, padding=1)
