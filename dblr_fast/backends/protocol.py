"""What a backend offers: the ops of dblr_fast, on tensors, forward and backward, and a whole network.

A backend receives tensors that the op layer has already checked: shapes agree, one device, and the maps
share one dtype. Maps (N, C, H, W) may come in any strides; every map that a backend returns is
channels_last, every other tensor contiguous. A backend allocates through torch, works on the current
device and stream, never writes into its inputs, and gives the same bits on every run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class FoldedNetwork:
    """Weights of a DBLRNet in evaluation mode, batch norm folded into each convolution, all float32.

    stem: (w1, b1, w2, b2), 5-D (3-D convolutions) or 4-D weights as `stem` takes them.
    body: one (weight (C, C, 3, 3), bias (C,)) for each of L3 to L32, in order; an even number.
    tail: (w1, b1, w2, b2, w3, b3) of L33 to L35.
    tail_skip: whether L30's output is added to L32's beside L2's.
    """

    stem: tuple[Tensor, ...]
    body: tuple[tuple[Tensor, Tensor], ...]
    tail: tuple[Tensor, ...]
    tail_skip: bool


class Network(Protocol):
    """A FoldedNetwork made ready by a backend: weights packed, called many times."""

    def workspace_bytes(self, height: int, width: int, most: int | None = None) -> int:
        """Bytes that a run over one (height, width) picture needs beside its input and output.

        most: bytes that it may take; a network that can do with less, in more time, does so.
        """

    def __call__(self, frames: Tensor, valid: tuple[int, int, int, int], most: int | None = None) -> Tensor:
        """(1, T, H, W) luma -> (1, 1, y1-y0, x1-x0): rows y0..y1, columns x0..x1 of valid = (y0, y1, x0, x1).

        Every layer pads with zeros at the edges of `frames`. What lies outside `valid` need not be
        computed but for the 35 - k pixels around it that layer k's output still feeds. most: see workspace_bytes;
        it changes no bit of the result.
        """


class Backend(Protocol):
    name: str
    dtypes: tuple[torch.dtype, ...] | None  # those of maps that it computes in; None (or left out) for all
    rounds_parameters: bool  # whether it takes float32 weights and biases beside 16-bit maps, and rounds them itself

    def unavailable(self, device: torch.device | None = None) -> str | None:
        """None when it can run (on that device), else one sentence saying why not and what to do."""

    def precisions(self, device: torch.device | None = None) -> dict[str, str | None]:
        """Each of exact, fast, half, bf16 -> None when offered (on that device), else the reason why not."""

    def at(self, precision: str) -> Backend:
        """What runs ops on float32 maps at a level of precision; the backend itself where levels change nothing."""

    def stem(self, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        """See python_ref.ops.stem."""

    def stem_backward(self, grad: Tensor, x: Tensor, y: Tensor, w1: Tensor, b1: Tensor, w2: Tensor,
                      need_x: bool) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor]:
        """(dx or None, dw1, db1, dw2, db2); y is what `stem` returned."""

    def conv_bn_act(self, x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor,
                    running_mean: Tensor, running_var: Tensor, residual: Tensor | None,
                    relu: bool, training: bool, eps: float, save: bool
                    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(y, mean, var, z). See python_ref.ops.conv_bn_act for y.

        z: the convolution's output without its bias, kept for backward; an empty tensor unless save.
        mean, var (Cout,), of gamma's dtype (float32 at least): with training the batch's mean and biased
        variance of z, else empty tensors. (The mean leaves the bias out because adding it and taking it
        away again would round, and shift every normalised value alike.)
        """

    def conv_bn_act_backward(self, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor,
                             beta: Tensor, mean: Tensor, var: Tensor, z: Tensor, relu: bool,
                             training: bool, eps: float, need_x: bool
                             ) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor]:
        """(dx or None, dweight, dbias, dgamma, dbeta); the residual's gradient is grad itself.

        mean, var: with training the batch's of z, as the forward returned them; without, the running ones,
        of z + bias. With training dbias is exactly zero, because batch norm removes what a bias adds.
        """

    def keeps_block_maps(self, x: Tensor, save: int) -> tuple[bool, bool]:
        """Whether residual_block keeps its first and its second convolution's output for backward, save as there."""

    def residual_block(self, x: Tensor, w1: Tensor, b1: Tensor, g1: Tensor, be1: Tensor, rm1: Tensor,
                       rv1: Tensor, w2: Tensor, b2: Tensor, g2: Tensor, be2: Tensor, rm2: Tensor,
                       rv2: Tensor, training: bool, eps: float, save: int
                       ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(y, mean1, var1, mean2, var2, z1, z2), as two conv_bn_act; the map between them is not kept.

        save: how many of z1 and z2 are to be kept, 0 to 2, 0 where there is no backward; a backend that computes them
        again may keep fewer, one that does not keeps both (keeps_block_maps). Those that are not kept are empty.
        """

    def residual_block_backward(self, grad: Tensor, x: Tensor,
                                w1: Tensor, b1: Tensor, g1: Tensor, be1: Tensor, mean1: Tensor, var1: Tensor,
                                z1: Tensor,
                                w2: Tensor, b2: Tensor, g2: Tensor, be2: Tensor, mean2: Tensor, var2: Tensor,
                                z2: Tensor,
                                training: bool, eps: float, need_x: bool) -> tuple[Tensor | None, ...]:
        """(dx or None, dw1, db1, dg1, dbe1, dw2, db2, dg2, dbe2)."""

    def reconstruct(self, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor,
                    b3: Tensor, save: bool) -> tuple[Tensor, Tensor, Tensor]:
        """(y, h1, h2); h1, h2: outputs of L33 and L34 after their ReLUs if save, else empty tensors."""

    def reconstruct_backward(self, grad: Tensor, x: Tensor, h1: Tensor, h2: Tensor, w1: Tensor,
                             w2: Tensor, w3: Tensor, need_x: bool) -> tuple[Tensor | None, ...]:
        """(dx or None, dw1, db1, dw2, db2, dw3, db3)."""

    def network(self, folded: FoldedNetwork, precision: str, device: torch.device) -> Network:
        """Packs the weights once; raises ValueError with the reason when the precision is not offered."""
