"""One picture of a clip: how its luma is read as numbers and written back, whatever holds the samples."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..colour import black_and_span, luma_of, quantise
from .pixels import Layout, layout, repacked, unpacked_name, views

_TORCH = {1: torch.uint8, 2: torch.uint16}


class Picture:
    """Samples of bits `bits`, full or limited range; `components` gives views of Y, U, V or of R, G, B.

    Luma is read from the Y plane as it is, whatever matrix made it, or computed from R, G, B. On writing
    back, Y is replaced and U, V are not touched; of R, G, B each gets the luma's difference, which leaves Cb
    and Cr as they were.
    """

    kind: str
    bits: int
    shift: int
    full: bool

    def components(self) -> list[np.ndarray]:
        """Views of the samples' own memory, (height, width) each."""
        raise TypeError(f"{type(self).__name__} holds no samples")

    def writable(self) -> None:
        """Makes the memory this picture's own before it is written to."""

    def luma(self, device: torch.device, weights: tuple[float, float, float]) -> Tensor:
        """(H, W) float32 on the device, black 0 and white 1 (samples beyond them lie beyond)."""
        black, span = black_and_span(self.bits, self.full)
        samples = self._samples(device)
        if self.kind == "yuv":
            return (samples[0] - black) / span
        return (luma_of(torch.stack(samples, -1), weights) - black) / span

    def put(self, restored: Tensor, luma: Tensor) -> None:
        """Replaces the luma, `luma` as read by `restored`; rounds at the native depth, clips to what it can
        hold."""
        black, span = black_and_span(self.bits, self.full)
        if self.kind == "yuv":
            values = [restored * span + black]
        else:
            difference = (restored - luma) * span
            values = [samples + difference for samples in self._samples(restored.device)]
        self.writable()
        for array, value in zip(self.components(), values):
            whole = quantise(value, 2**self.bits - 1, _TORCH[array.dtype.itemsize]).cpu().numpy()
            array[...] = whole << self.shift if self.shift else whole

    def _samples(self, device) -> list[Tensor]:
        parts = self.components()[:1 if self.kind == "yuv" else 3]
        return [torch.from_numpy(np.right_shift(part, self.shift)).to(device).float() for part in parts]


class VideoPicture(Picture):
    """A frame of PyAV."""

    def __init__(self, frame, full: bool):
        planar = unpacked_name(frame.format.name)
        self.frame = frame if planar == frame.format.name else frame.reformat(format=planar)
        self.form: Layout = layout(planar)
        self.kind, self.bits, self.shift, self.full = self.form.kind, self.form.bits, self.form.shift, full

    @property
    def size(self) -> tuple[int, int]:
        return self.frame.width, self.frame.height

    def components(self):
        return views(self.frame, self.form)

    def writable(self):
        self.frame.make_writable()

    def as_format(self, name: str):
        """The frame in a format that holds the same samples."""
        return self.frame if name == self.form.name else repacked(self.frame, self.form, name)


class ArrayPicture(Picture):
    """A gray (H, W), B, G, R (H, W, 3) or B, G, R, A (H, W, 4) array of uint8 or uint16, as OpenCV has
    them."""

    shift = 0

    def __init__(self, array: np.ndarray, name: str = "", full: bool = True):
        self.array, self.name, self.full = array, name, full
        self.kind = "yuv" if array.ndim == 2 else "rgb"
        self.bits = 8 * array.dtype.itemsize

    @property
    def size(self) -> tuple[int, int]:
        return self.array.shape[1], self.array.shape[0]

    def components(self):
        if self.kind == "yuv":
            return [self.array]
        return [self.array[..., channel] for channel in (2, 1, 0)]
