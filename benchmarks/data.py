"""Training samples a second: `python benchmarks/data.py --paths FOOTAGE --workers 1 2`.

Without --paths, footage is drawn: a textured picture that a camera pans over, with discs that move across it.
Prints where one process spends its processor time on a sample, by parts, for windows of scenes that stand still and
of scenes that move, and how many samples a second worker processes deliver in batches, by the clock on the wall, with
the footage's luma in a cache.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import common
import torch

from dblr_fast.data import BlurConfig, DataConfig, batches, training_set

# What is timed apart: functions of dblr_fast.data by their modules. Time within another of these is that one's.
PARTS = {
    "read and reduce": {"windows": ["Reduced.cut"]},
    "frame and place": {"windows": ["sharpness", "is_cut"]},
    "camera": {"blur": ["_motion", "_homographies", "_path_length", "_apply"]},
    "optical flow": {"scene": ["Moving._flow"]},
    "moving scene": {"scene": ["Moving._between", "enlarge"]},
    "exposures": {"blur": ["_expose"]},
    "response": {"blur": ["_response_tables", "_light", "_through"]},
    "noise and coding": {"blur": ["_degrade"]},
}


class Clock:
    """Adds up the processor time that each part takes by itself."""

    def __init__(self):
        self.seconds, self._stack, self._since = dict.fromkeys([*PARTS, "rest"], 0.0), ["rest"], None

    def __enter__(self):
        self._undo = []
        for part, modules in PARTS.items():
            for module, names in modules.items():
                for name in names:
                    owner = sys.modules[f"dblr_fast.data.{module}"]
                    *path, last = name.split(".")
                    for step in path:
                        owner = getattr(owner, step)
                    plain = getattr(owner, last)
                    self._undo.append((owner, last, plain))
                    setattr(owner, last, self._timed(plain, part))
        self._since = time.process_time()
        return self

    def __exit__(self, *_):
        self._switch()
        for owner, name, plain in self._undo:
            setattr(owner, name, plain)

    def _switch(self):
        now = time.process_time()
        self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    def _timed(self, function, part):
        def run(*arguments, **options):
            self._switch()
            self._stack.append(part)
            try:
                return function(*arguments, **options)
            finally:
                self._switch()
                self._stack.pop()

        return run


def draw_footage(folder, frames=24, size=(720, 1280)):
    """One clip of pictures: a pan over texture of several scales, with discs that move on their own."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    height, width = size
    wide = sum(cv2.resize(rng.random((height // s + 1, width // s + 60)), (width + 200, height),
                          interpolation=cv2.INTER_CUBIC) for s in (3, 12, 60)) / 3
    clip = Path(folder) / "drawn"
    clip.mkdir()
    for i in range(frames):
        picture = np.clip(255 * wide[:, 4 * i:4 * i + width], 0, 255).astype(np.uint8)
        for k in range(12):
            centre = (100 + 97 * k + (6 - k) * i, 60 + 50 * k)
            cv2.circle(picture, centre, 40, 20 * k, -1, cv2.LINE_AA)
        cv2.imwrite(str(clip / f"{i:03d}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return folder


def by_parts(config, frames, samples):
    """Milliseconds a sample of each part, in this process."""
    dataset = training_set(config, frames, 0)
    for number in range(3):
        dataset[number]
    with Clock() as clock:
        for number in range(samples):
            dataset[number]
    return {part: 1e3 * seconds / samples for part, seconds in clock.seconds.items()}


def delivered(dataset, workers, batch, count):
    """Samples a second out of `batches`, from the first batch that arrives on."""
    numbers = (list(range(n * batch, (n + 1) * batch)) for n in range(count + 1))
    feed = batches(dataset, numbers, workers)
    next(feed)
    start = time.perf_counter()
    for _ in feed:
        pass
    return batch * count / (time.perf_counter() - start)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--paths", nargs="*", default=[], help="footage, as data.paths; none: it is drawn")
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--samples", type=int, default=100, help="samples of each measurement")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2], help="0: in this process")
    parser.add_argument("--json", help="where to write the result")
    return parser.parse_args()


def main():
    arguments, rows = parse(), []
    device = torch.device("cpu")
    torch.set_num_threads(1)
    print(common.machine(device))
    with tempfile.TemporaryDirectory() as folder:
        paths = arguments.paths or [draw_footage(folder)]
        config = DataConfig(paths=tuple(map(str, paths)), crop=arguments.crop, cache=str(Path(folder) / "luma"))
        start = time.perf_counter()
        dataset = training_set(config, arguments.frames, 0)
        seconds, counts = time.perf_counter() - start, [c.sharp.shape[0] for clips in dataset.clips for c in clips]
        rows.append({"measured": "decoding", "frames_per_s": sum(counts) / seconds})
        print(f"decoding into the cache: {sum(counts)} frames of {len(counts)} clips, "
              f"{sum(counts) / seconds:.0f} frames/s")
        for name, share in (("still scenes", 0.0), ("moving scenes", 1.0)):
            parts = by_parts(replace(config, blur=BlurConfig(flow_share=share)), arguments.frames, arguments.samples)
            total = sum(parts.values())
            rows.append({"measured": name, "ms_per_sample": total, "parts_ms": parts})
            print(f"{name}: {total:.1f} ms a sample: " + ", ".join(f"{part} {ms:.1f}" for part, ms in parts.items()))
        for workers in arguments.workers:
            rate = delivered(dataset, workers, arguments.batch, max(1, arguments.samples // arguments.batch))
            rows.append({"measured": "batches", "workers": workers, "samples_per_s": rate})
            print(f"batches of {arguments.batch} from {workers} workers: {rate:.1f} samples/s")
        if arguments.json:
            common.write_json(arguments.json, device, rows, frames=arguments.frames, crop=arguments.crop,
                              batch=arguments.batch, footage="drawn" if not arguments.paths else "given")


if __name__ == "__main__":
    main()
