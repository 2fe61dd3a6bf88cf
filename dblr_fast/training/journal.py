"""What a run writes about itself while it goes on: lines, tables, TensorBoard, pictures, progress."""

from __future__ import annotations

import csv
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from ..errors import Refusal
from ..replace import replacing


class Table:
    """A CSV file that grows by a row at a time, keyed by "step"; reopened, it forgets rows after a step."""

    def __init__(self, path: Path, columns: list[str], last_step: int):
        self.columns = columns
        rows = []
        if last_step and path.is_file():
            with open(path, newline="") as file:
                rows = [row for row in csv.DictReader(file) if _number(row.get("step")) <= last_step]
        with replacing(path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        self.file = open(path, "a", newline="")
        self.writer = csv.DictWriter(self.file, columns, restval="")

    def add(self, row: dict) -> None:
        self.writer.writerow({key: repr(value) if isinstance(value, float) else value for key, value in row.items()})
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def _number(text) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return float("inf")  # a row that a crash cut off


class Journal:
    """Rank 0's record of a run: train.csv, validation.csv, tensorboard/, pictures/ and a line or a bar.

    names: the values of a step; the means since the last line are what is written. The floats in the tables are
    written so that they read back exactly.
    """

    def __init__(self, folder: Path, names: list[str], scores: tuple[str, ...], step: int, steps: int,
                 tensorboard: bool, stream=None):
        self.folder, self.steps = folder, steps
        self.stream = sys.stdout if stream is None else stream
        self.board = _summary_writer(folder / "tensorboard", step) if tensorboard else None
        self.train = Table(folder / "train.csv", ["step", *names, "lr", "images_per_s"], step)
        self.validation = Table(folder / "validation.csv", ["step", *scores], step)
        self.bar = _bar(sys.stderr) if sys.stderr.isatty() else None
        if self.bar is not None:
            self.task = self.bar.add_task("training", total=steps, completed=step, speed="")
            self.bar.start()

    def progress(self, step: int) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=step)

    def line(self, step: int, values: dict[str, float], lr: float, images_per_s: float) -> None:
        """Means since the last line, the learning rate, and images a second over all processes."""
        self.train.add({"step": step, **values, "lr": lr, "images_per_s": round(images_per_s, 3)})
        if self.board is not None:
            for name, value in {**values, "lr": lr, "images_per_s": images_per_s}.items():
                self.board.add_scalar(f"train/{name}", value, step)
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.say(f"step {step}/{self.steps}  {text}  lr {lr:.3g}  {images_per_s:.3g} images/s")
        if self.bar is not None:
            self.bar.update(self.task, speed=f"{images_per_s:.3g} images/s")

    def validated(self, step: int, scores: dict[str, float], pictures) -> None:
        """Scores of a validation, and pictures [(name, blurred, restored, sharp)], each (3, H, W) uint8."""
        self.validation.add({"step": step, **scores})
        if self.board is not None:
            for name, value in scores.items():
                self.board.add_scalar(f"validation/{name}", value, step)
        for index, (name, *parts) in enumerate(pictures):
            self._show(step, index, name, parts)
        self.say(f"step {step}  validation: PSNR {scores['psnr_y']:.2f} dB (input {scores['psnr_y_input']:.2f}), "
                 f"SSIM {scores['ssim_y']:.4f} ({scores['ssim_y_input']:.4f}) of Y; {scores['psnr_rgb']:.2f} dB "
                 f"({scores['psnr_rgb_input']:.2f}), {scores['ssim_rgb']:.4f} ({scores['ssim_rgb_input']:.4f}) of RGB")

    def first_batch(self, batch: dict) -> None:
        """Shows the first batch, blurred frames beside the sharp one: what is learned from, to look at."""
        from ..data import dump_batch

        folder = self.folder / "pictures"
        folder.mkdir(exist_ok=True)
        dump_batch(batch, folder / "first_batch.png")

    def say(self, text: str) -> None:
        if self.bar is not None:
            self.bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        for part in (self.train, self.validation, self.board):
            if part is not None:
                part.close()
        if self.bar is not None:
            self.bar.stop()

    def _show(self, step, index, name, parts) -> None:
        """blurred | restored | sharp side by side, as a PNG and in TensorBoard."""
        import torch

        picture = torch.cat(parts, dim=2)
        if self.board is not None:
            self.board.add_image(f"{index:02d} {name} (blurred, restored, sharp)", picture, step)
        try:
            import cv2
        except ImportError:
            raise Refusal("pictures need OpenCV, which is not installed; pip install opencv-python-headless, or "
                          "--validation.pictures 0") from None
        plain = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[-80:]
        target = self.folder / "pictures" / f"{step:08d}_{index:02d}_{plain}.png"
        target.parent.mkdir(exist_ok=True)
        with replacing(target) as temporary:
            code = cv2.imencode(".png", picture.permute(1, 2, 0).flip(-1).contiguous().numpy())[1]
            temporary.write_bytes(code.tobytes())


class Speed:
    """Images a second since it was last asked, without the time spent elsewhere (validation, checkpoints)."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        self.begin, self.elsewhere, self.images = time.perf_counter(), 0.0, 0

    def __enter__(self):
        self.left = time.perf_counter()

    def __exit__(self, *_):
        self.elsewhere += time.perf_counter() - self.left

    def rate(self) -> float:
        seconds = time.perf_counter() - self.begin - self.elsewhere
        images = self.images
        self.restart()
        return images / max(seconds, 1e-9)


@contextmanager
def reading(what: str, shown: bool = True):
    """Context that gives a function of (done, total) which shows how far reading is, on a terminal; else None."""
    bar = _bar(sys.stderr) if shown and sys.stderr.isatty() else None
    if bar is None:
        yield None
        return
    with bar:
        task = bar.add_task(f"reading {what}", total=None, speed="")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _summary_writer(folder: Path, step: int):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise Refusal("curves for TensorBoard need tensorboard, which is not installed; "
                      "pip install 'dblr_fast[train]', or --log.tensorboard false") from None
    # After a crash the file may hold steps beyond the checkpoint; TensorBoard then hides them.
    return SummaryWriter(os.fspath(folder), purge_step=step + 1 if step else None)


def _bar(stream):
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return None  # without rich there are lines alone
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                    TextColumn("{task.fields[speed]}"), TimeRemainingColumn(), TextColumn("left"),
                    console=Console(file=stream), speed_estimate_period=300)
