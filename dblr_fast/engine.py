"""Inference: batch norm folded and weights packed once, buffers planned and reused, exact tiles."""

from __future__ import annotations

import threading
import weakref
from functools import partial

import torch
from torch import Tensor

from . import levels, memory
from .backends import FoldedNetwork, requested, select
from .held import tensors_of
from .tiles import halo_of, plan

# Workspace that a run may take unless the caller says otherwise; bounds memory for any picture size. On a CPU also this
# part of what is available, for a system that runs out of memory ends the process without a word.
DEFAULT_WORKSPACE = 1280 * 2**20
AVAILABLE_PART = 0.5
LEAST_WORKSPACE = 64 * 2**20  # however little is available: tiles so small that they are nearly all halo would take hours
DEFAULT_WORKSPACE_GPU = 2048 * 2**20  # a whole 1920x1080 picture in 16 bits


@torch.no_grad()
def fold(model) -> FoldedNetwork:
    """Folds each batch norm into its convolution (in float64), for evaluation: w * g/s, (b - mean) * g/s + beta."""
    body = []
    for half in model.body():
        weight, bias, gamma, beta, mean, var = (t.double() for t in half.tensors())
        scale = gamma / torch.sqrt(var + half.bn.eps)
        body.append(((weight * scale.view(-1, 1, 1, 1)).float(), ((bias - mean) * scale + beta).float()))
    convs = (model.conv1, model.conv2, model.conv33, model.conv34, model.conv35)
    plain = [t.detach().float().contiguous() for conv in convs for t in (conv.weight, conv.bias)]
    return FoldedNetwork(tuple(plain[:4]), tuple(body), tuple(plain[4:]), model.tail_skip)


def _default_workspace() -> int:
    available = memory.available()
    if available is None:
        return DEFAULT_WORKSPACE
    return min(DEFAULT_WORKSPACE, max(LEAST_WORKSPACE, int(available * AVAILABLE_PART)))


class Engine:
    """Runs a DBLRNet in evaluation mode over pictures of any size.

    model: a DBLRNet; its weights are read anew whenever they have changed, in place or not.
    backend: a name, or None for the caller's choice (use_backend, DBLR_FAST_BACKEND), else the fastest.
    precision: "exact", "fast", "half", "bf16", or "auto": exact on a CPU, half on a GPU.
    tile: "auto" (as few tiles as the workspace allows), "off", or the side of a square tile in pixels.
        Tiles carry the exact halo (35 pixels for Table I): tiled and whole results agree.
    device: where to run; None for the device of the model's parameters.
    workspace: bytes that maps may take on the device; None for 1.25 GiB (2 GiB on a GPU), on a CPU no more than half
        of the memory that is available as the engine is made, or 64 MiB, and less when memory runs out. Where that is
        short a CPU keeps fewer rows of each map at a time (the same results, a few percent slower), then takes tiles.

    Raises ValueError or RuntimeError with one sentence when a choice cannot be had.
    """

    def __init__(self, model, backend: str | None = None, precision: str = "auto",
                 tile: str | int = "auto", device: torch.device | str | None = None,
                 workspace: int | None = None):
        self.model = model
        self.device = torch.device(device) if device is not None else model.conv1.weight.device
        if precision == "auto":
            precision = "exact" if self.device.type == "cpu" else "half"
        self.precision = levels.check(precision)
        if tile not in ("auto", "off") and not (isinstance(tile, int) and not isinstance(tile, bool) and tile > 0):
            raise ValueError(f"tile must be 'auto', 'off' or a number of pixels of at least 1; got {tile!r}")
        self.tile = tile
        name = "" if backend == "auto" else backend
        self._backend = select(self.device, requested() if name is None else name, self.precision)
        self.backend = self._backend.name
        if workspace is None:
            workspace = _default_workspace() if self.device.type == "cpu" else DEFAULT_WORKSPACE_GPU
        self.workspace = workspace
        self.halo = halo_of(len(model.body()))
        self._network = self._state = None  # of the weights when they were last read
        self._queues = self.device.type == "cuda"  # calls return before the work is done
        self._plans: dict = {}
        self._lock = threading.Lock()

    def __call__(self, frames: Tensor) -> Tensor:
        """(N, T, H, W) float32 luma in [0, 1] -> (N, 1, H, W) float32, not clamped, on frames' device.

        Each picture of the batch is restored by itself. Raises ValueError for an input that does not fit
        and MemoryError when not even small tiles fit into memory.
        """
        if frames.dim() != 4 or frames.shape[1] != self.model.frames or 0 in frames.shape:
            raise ValueError(f"wanted frames (N, {self.model.frames}, H, W) with at least one pixel, got "
                             f"{tuple(frames.shape)}")
        if frames.dtype != torch.float32:
            raise ValueError(f"wanted float32 luma in [0, 1], got {frames.dtype}; convert it first")
        with self._lock, torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            n, _, h, w = frames.shape
            out = torch.empty((n, 1, h, w), dtype=torch.float32, device=frames.device)
            moved = frames.detach().to(self.device)
            if self._may_begin():
                self._pictures(moved, out)
                if not self._refresh():
                    return out
            else:
                self._refresh()
            self._pictures(moved, out)
            return out

    def _may_begin(self) -> bool:
        """Whether to begin with the weights as they were last seen. A GPU then works while they are compared, which
        takes longer than launching; where they turn out to have changed, what it made is made again."""
        if not self._queues or self._state is None:
            return False
        return self.device.type != "cuda" or not torch.cuda.is_current_stream_capturing()

    def _pictures(self, frames: Tensor, out: Tensor) -> None:
        for i in range(len(frames)):
            self._picture(frames[i:i + 1], out[i:i + 1])

    def _picture(self, frames: Tensor, out: Tensor) -> None:
        """One picture, tile by tile; when memory runs out, again with tiles of half the size."""
        h, w = frames.shape[2:]
        workspace, previous = self.workspace, None
        while True:
            needs = partial(self._network.workspace_bytes, most=workspace)
            key = h, w, workspace, needs(h, w)
            if key not in self._plans:
                self._plans = {key: plan(h, w, self.tile, self.halo, workspace, needs)}
            tiles = self._plans[key]
            largest = max(needs(*tile.crop_size) for tile in tiles)
            if previous is not None and largest >= previous[0]:
                raise MemoryError(f"a tile's maps need {largest >> 20} MiB and memory ran out; free memory, or "
                                  f"take tile='auto' or smaller tiles") from previous[1]
            try:
                for tile in tiles:
                    out[:, :, tile.y0:tile.y1, tile.x0:tile.x1] = self._network(
                        tile.crop(frames), tile.valid, workspace)
                return
            except (torch.OutOfMemoryError, MemoryError) as error:
                workspace, previous = largest // 2, (largest, error)

    def _refresh(self) -> bool:
        """Folds and packs the weights again if any parameter or running statistic has changed; whether it did."""
        state = self._fingerprint()
        if self._network is not None and state is not None and state == self._state:
            return False
        self._network = self._backend.network(fold(self.model), self.precision, self.device)
        self._state = state
        return True

    def _fingerprint(self):
        """What identifies the weights' values; None when nothing can, so that they are read each time."""
        tensors = tensors_of(self.model)
        fingerprint = getattr(self._backend, "fingerprint", None)
        if fingerprint is not None:  # the values themselves: sees changes through .data and numpy too
            return fingerprint(tensors)
        try:
            return [(t.data_ptr(), t._version, id(t)) for t in tensors]
        except RuntimeError:  # inference tensors count no versions
            return None


_engines: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def engine_of(model) -> Engine:
    """The engine that serves a module's own forward, for the caller's present choices.

    Kept beside the module, not in it, so that copying, pickling and replicating the module stay plain.
    """
    device = model.conv1.weight.device
    key = (device, select(device, requested(), levels.current()).name, levels.current())
    kept = _engines.get(model)
    if kept is None or kept[0] != key:
        # The engine must not keep its model alive: a strong reference to a weak dictionary's key would.
        kept = key, Engine(weakref.proxy(model), backend=key[1], precision=key[2], device=device)
        _engines[model] = kept
    return kept[1]
