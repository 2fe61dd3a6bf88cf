"""Small clips made on the fly, and engines that cost nothing, for the tests of files in and out."""

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from dblr_fast.errors import Refusal
from dblr_fast.video import run as video_run
from dblr_fast.video.picture import VideoPicture
from dblr_fast.video.pixels import layout, views

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


class Passing:
    """Stands for an Engine: gives back the centre frame, changed by `change` if one is given."""

    backend, precision, device = "none", "exact", torch.device("cpu")

    def __init__(self, change=None, frames=5, metadata=None):
        self.model = SimpleNamespace(frames=frames, metadata=metadata or {})
        self.change, self.calls = change, 0

    def __call__(self, batch):
        assert batch.dtype == torch.float32 and batch.shape[:2] == (1, self.model.frames)
        self.calls += 1
        centre = batch[:, self.model.frames // 2][:, None]
        return centre.clone() if self.change is None else self.change(centre)


def noise(width, height, name, seed, smooth=True):
    """One frame (of a packed format by way of a planar one): a moving gradient with some noise, so that
    motion is predicted and nothing repeats."""
    if name == "yuyv422":
        return noise(width, height, "yuv422p", seed, smooth).reformat(format=name)
    form = layout(name)
    frame = av.VideoFrame(width, height, name)
    rng = np.random.default_rng(seed)
    top = 2**form.bits - 1
    for i, view in enumerate(views(frame, form)):
        y, x = np.mgrid[:view.shape[0], :view.shape[1]]
        wave = 0.5 + 0.3 * np.sin((x + 3 * seed) / 9 + i) * np.cos((y - 2 * seed) / 7) if smooth else 0.5
        grain = rng.uniform(-0.02, 0.02, view.shape) if smooth else rng.uniform(-0.5, 0.5, view.shape)
        value = top * (wave + grain)
        view[...] = (np.clip(value, 0, top).astype(np.uint32) << form.shift).astype(form.dtype)
    return frame


def make_clip(path, frames=8, size=(64, 48), name="yuv420p", codec="libx264", time_base=Fraction(1, 15360),
              stamps=None, audio=False, rotation=0, options=None, prepare=None, container=None,
              rate=Fraction(30), smooth=True, period=0, durations=None, **tags):
    """Writes a clip; `tags` are set on the encoder (color_range, colorspace, ...).

    period: pictures come back after so many frames. durations: of the frames, in units of time_base.
    """
    stamps = stamps or [512 * i for i in range(frames)]
    with av.open(str(path), "w", container_options=container or {}) as file:
        stream = file.add_stream(codec, rate=rate, options=options or {})
        context = stream.codec_context
        context.width, context.height, context.pix_fmt, context.time_base = *size, name, time_base
        if codec == "mpeg4":
            context.qscale, context.global_quality = True, 118
        for key, value in tags.items():
            setattr(context, key, value)
        if durations:
            context.flags |= int(av.codec.context.Flags.frame_duration)
        if rotation:
            stream.set_display_rotation(rotation)
        sound = file.add_stream("aac", rate=48000) if audio else None
        if prepare:
            prepare(file, stream)
        for i, stamp in enumerate(stamps):
            frame = noise(*size, name, i % period if period else i, smooth)
            frame.pts, frame.time_base = stamp, time_base
            if durations:
                frame.duration = durations[i]
            frame.color_range = tags.get("color_range", 0)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        if sound:
            seconds = float((stamps[-1] - stamps[0]) * time_base)
            for i in range(max(2, int(seconds * 48000 / 1024))):
                wave = np.sin(np.arange(1024 * i, 1024 * (i + 1)) / 20).astype(np.float32)
                tone = av.AudioFrame.from_ndarray(np.stack([wave, wave]), "fltp", "stereo")
                tone.sample_rate, tone.pts, tone.time_base = 48000, 1024 * i, Fraction(1, 48000)
                file.mux(sound.encode(tone))
            file.mux(sound.encode(None))
    return path


def decoded(path, limit=None):
    """(time stamp in seconds, [components as arrays], frame) of each video frame."""
    out = []
    with av.open(str(path)) as file:
        for frame in file.decode(video=0):
            out.append((frame.pts * frame.time_base,
                        [v.copy() for v in VideoPicture(frame, False).components()], frame))
            if limit and len(out) == limit:
                break
    return out


def stamps(path):
    """Time stamps of the video's frames, in seconds, exact."""
    return [item[0] for item in decoded(path)]


def packets(path, kind="audio"):
    """(bytes, pts, dts) of all packets of the streams of a kind, times in seconds."""
    with av.open(str(path)) as file:
        return [(bytes(p), p.pts * p.time_base, p.dts * p.time_base)
                for p in file.demux() if p.stream.type == kind and p.size]


def leftovers(folder):
    """Names of hidden files: what a run must not leave."""
    return sorted(p.name for p in Path(folder).iterdir() if p.name.startswith("."))


def restore(source, target, model=None, limit=None, **options):
    """deblur_video with an engine that costs nothing; `limit` stops after that many frames."""
    arguments = dict(model=model or Passing(), backend=None, precision="auto", tile="auto", device=None,
                     codec="libx264", crf=None, range="auto", fps=None, overwrite=False, progress=None)
    return video_run._run(source, target, limit=limit, **{**arguments, **options})


def brighter(y):
    return y + 0.05


def refused(match, source, target, error=Refusal, **options):
    """The run must be refused in one sentence, and nothing beside the target may have changed."""
    folder = Path(target).parent
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()} if folder.is_dir() else {}
    with pytest.raises(error, match=match) as caught:
        restore(source, target, **options)
    assert "\n" not in str(caught.value)
    if folder.is_dir():
        assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before
