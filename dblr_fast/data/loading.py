"""Batches of numbered samples, prepared by worker processes."""

from __future__ import annotations

import atexit
import multiprocessing.util  # noqa: F401  (it waits for workers at exit: `_end_all` must be registered after that)
import signal
import weakref
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import Refusal


def batches(dataset: Dataset, numbers: Iterable[Sequence[int]], workers: int = 2, prefetch: int = 4,
            context: str | None = None, pin_memory: bool = False) -> Iterator[dict[str, torch.Tensor]]:
    """Yields a batch for each sequence of sample numbers, in their order.

    dataset: a training set. workers: processes that prepare batches, each on one thread; 0 prepares them here.
    prefetch: batches that each prepares ahead. context: "fork", "spawn" or "forkserver", how they are started; None
    takes the system's own way. pin_memory: page-locked, for copies to a GPU that do not wait.
    Yields dict(blurred (N, T, crop, crop), sharp (N, 1, crop, crop), numbers (N,) int64).
    Raises Refusal as the dataset does, whichever process it comes from. Workers take no notice of SIGINT and SIGTERM,
    which go to whole process groups, and end with this iterator, when it is closed, or with the process.
    """
    loader = DataLoader(_Whole(dataset), batch_size=None, sampler=numbers, num_workers=workers,
                        prefetch_factor=prefetch if workers else None, worker_init_fn=_start,
                        multiprocessing_context=context if workers else None, pin_memory=pin_memory)
    iterator = iter(loader)
    _running.add(iterator)
    try:
        for batch in iterator:
            if "refusal" in batch:
                raise Refusal(batch["refusal"])
            yield batch
    finally:
        _end(iterator)


_running: weakref.WeakSet = weakref.WeakSet()


def _end(iterator) -> None:
    """Ends the workers of a loader now, though a traceback may still hold it. They would not heed being terminated,
    as is done at exit, and be waited for without end."""
    shut_down = getattr(iterator, "_shutdown_workers", None)
    if shut_down is not None:  # it has workers
        shut_down()
    _running.discard(iterator)


@atexit.register
def _end_all() -> None:
    for iterator in list(_running):
        _end(iterator)


class _Whole(Dataset):
    """Batches in place of samples. A Refusal is handed on as data: the loader would bury it in a traceback."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, numbers):
        try:
            samples = [self.dataset[number] for number in numbers]
        except Refusal as refusal:
            return {"refusal": str(refusal)}
        batch = {key: torch.stack([sample[key] for sample in samples]) for key in ("blurred", "sharp")}
        return {**batch, "numbers": torch.tensor(list(numbers), dtype=torch.int64)}


def _start(_) -> None:
    """Runs first in each worker; torch has limited itself to one thread there."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    import cv2

    cv2.setNumThreads(0)
