"""Samples as pictures to look at: a row for each window, its blurred frames and then the sharp centre."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..errors import Refusal
from ..replace import replacing
from .reading import opencv


def dump(dataset, numbers: Iterable[int], folder, rows: int = 8) -> list[Path]:
    """Writes contact sheets of numbered samples into a folder, which is made if it is missing.

    rows: samples a sheet. Returns the files, samples_FIRST_LAST.png, in order; see `dump_batch` for what they show.
    """
    folder, numbers, files = Path(folder), list(numbers), []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"the folder {folder} for pictures of samples cannot be made ({error.strerror})") from None
    for start in range(0, len(numbers), rows):
        part = numbers[start:start + rows]
        samples = [dataset[number] for number in part]
        batch = {key: [sample[key] for sample in samples] for key in ("blurred", "sharp")}
        files.append(dump_batch(batch, folder / f"samples_{part[0]:06d}_{part[-1]:06d}.png"))
    return files


def dump_batch(batch: dict, path) -> Path:
    """Writes a batch as one PNG: for each window a row of all its blurred frames and then the sharp centre.

    batch: dict(blurred (N, T, H, W), sharp (N, 1, H, W)), luma in [0, 1], on any device. Returns the path.
    """
    cv2 = opencv()
    rows = []
    for blurred, sharp in zip(batch["blurred"], batch["sharp"]):
        frames = [np.pad(_bytes(frame), 1, constant_values=255) for frame in (*blurred, *sharp)]
        rows.append(np.concatenate(frames, 1))
    path = Path(path)
    done, code = cv2.imencode(".png", np.concatenate(rows))
    if not done:
        raise Refusal(f"{path} would be too large for a PNG; dump fewer windows")
    with replacing(path) as temporary:
        temporary.write_bytes(code)
    return path


def _bytes(frame) -> np.ndarray:
    frame = frame.detach().float().cpu().numpy()
    return np.rint(np.clip(np.nan_to_num(frame), 0, 1) * 255).astype(np.uint8)
