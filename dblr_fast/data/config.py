"""What to train on, and which blur to make: the dataclasses behind the `data` part of a configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..errors import Refusal

Layout = Literal["auto", "sharp", "dvd", "gopro", "reds", "kitti"]
LAYOUTS = ("auto", "sharp", "dvd", "gopro", "reds", "kitti")
RESPONSES = ("gamma", "srgb", "linear", "s_curve")


def _refuse_unless(holds: bool, name: str, wanted: str, given) -> None:
    if not holds:
        raise Refusal(f"data.{name} must be {wanted}; got {given!r}")


def _interval(name: str, pair, low: float, high: float, unit: str) -> None:
    ok = len(pair) == 2 and low <= pair[0] <= pair[1] <= high
    _refuse_unless(ok, name, f"two numbers, the smaller first, from {low:g} to {high:g} {unit}", pair)


@dataclass
class BlurConfig:
    """Blur made from sharp footage while training. Lengths are in pixels of the crop."""

    length: tuple[float, float] = (0.0, 40.0)
    """Shortest and longest path of the picture during the centre exposure, in pixels."""
    length_shape: tuple[float, float] = (1.1, 3.6)
    """The two parameters of the Beta distribution of lengths between those; (1.1, 3.6) has its mean at 0.23."""
    sharp_share: float = 0.16
    """Share of windows without blur, whose target is their own centre frame."""
    flow_share: float = 0.25
    """Share of windows in which objects move too, along the optical flow of true neighbouring frames."""
    scene_speed: tuple[float, float] = (0.1, 1.0)
    """Speed of that motion, as a share of the true one."""
    exposure: tuple[float, float] = (0.5, 1.0)
    """Share of the time from frame to frame during which the shutter is open."""
    subframes: tuple[int, int] = (15, 40)
    """Fewest and most instants averaged for one exposure; between them one a pixel of path."""
    responses: tuple[Literal["gamma", "srgb", "linear", "s_curve"], ...] = RESPONSES
    """Camera response curves to draw from; light is averaged before the response."""
    noise: float = 0.012
    """Largest standard deviation of the noise, where white is 1; half of the blurred windows have some."""
    coding_share: float = 0.15
    """Share of blurred windows that pass through JPEG."""
    coding_quality: tuple[int, int] = (60, 95)
    """Lowest and highest JPEG quality."""
    full_size_share: float = 0.2
    """Share of windows cut at the footage's own size; the others are cut from reduced pictures."""
    reduced: tuple[float, float] = (0.4, 0.75)
    """Least and largest factor by which pictures are reduced, which takes away blur, noise and coding of
    their own; pictures are never reduced below the size of the crop."""

    def check(self) -> None:
        """Raises Refusal for the first value out of its range."""
        _interval("blur.length", self.length, 0, 200, "pixels")
        _refuse_unless(len(self.length_shape) == 2 and min(self.length_shape) > 0, "blur.length_shape",
                       "two numbers above 0", self.length_shape)
        for name in ("sharp_share", "flow_share", "coding_share", "full_size_share"):
            value = getattr(self, name)
            _refuse_unless(0 <= value <= 1, f"blur.{name}", "from 0 to 1", value)
        _interval("blur.scene_speed", self.scene_speed, 0, 4, "of the true speed")
        _interval("blur.exposure", self.exposure, 0, 1, "of the time between frames")
        _interval("blur.subframes", self.subframes, 1, 1000, "instants")
        _interval("blur.coding_quality", self.coding_quality, 1, 100, "")
        _interval("blur.reduced", self.reduced, 0.05, 1, "of the size")
        _refuse_unless(0 <= self.noise <= 1, "blur.noise", "from 0 to 1", self.noise)
        _refuse_unless(bool(self.responses) and set(self.responses) <= set(RESPONSES), "blur.responses",
                       f"some of {', '.join(RESPONSES)}", self.responses)


@dataclass
class DataConfig:
    """Where the footage is, how it is cut, and how it is read."""

    paths: tuple[str, ...] = ()
    """Folders to train on: published sets of blurred and sharp pairs, or any folder of sharp videos and
    folders of pictures."""
    layouts: tuple[Layout, ...] = ("auto",)
    """What each of the paths holds, or one word for all. dvd: quantitative_datasets/VIDEO/{input,GT};
    gopro: {train,test}/SEQUENCE/{blur,blur_gamma,sharp}; reds: {train,val}_{blur,sharp}/CLIP;
    kitti: {blur,sharp}/{image_2,image_3}/SCENE_{09,10,11}.png; sharp: sharp footage, blurred while training;
    auto: whichever of them is found."""
    weights: tuple[float, ...] = ()
    """How often each of the paths is drawn from, relative to the others; empty is equally often."""
    gopro_blur: Literal["blur", "blur_gamma"] = "blur"
    """Which blurred frames of the GoPro set: averaged as they are, or in linear light (gamma 2.2)."""
    crop: int = 128
    """Side of the square crops, in pixels."""
    flips: bool = True
    """Flip crops left to right and upside down at random (Section IV-B of the paper)."""
    turns: bool = False
    """Also turn crops by 90 degrees and run windows backwards at random."""
    blur: BlurConfig = field(default_factory=BlurConfig)
    """Blur made from sharp footage."""
    held_out: int = 1
    """Clips kept for validation of each path that has no test split, the last in order of names, where
    validation_paths is empty; of a single clip its last fifth is kept instead."""
    validation_paths: tuple[str, ...] = ()
    """Folders to validate on; empty is the test split of each of the paths (dvd, gopro, reds), or the
    clips held out where there is none."""
    validation_layouts: tuple[Layout, ...] = ("auto",)
    """What each of the validation paths holds, or one word for all."""
    validation_windows: int = 16
    """How many windows to validate on, spread evenly over all clips."""
    validation_size: int = 256
    """Side of the square cut from the middle of each validation window; 0 takes whole pictures. Windows are
    held in memory, 3 (frames + 1) bytes a pixel."""
    cache: str = "auto"
    """Folder for decoded luma, one byte a pixel, which makes random access cheap: auto is
    ~/.cache/dblr_fast/luma ($XDG_CACHE_HOME is honoured), off keeps none: pictures are decoded each time, videos
    into a temporary folder. Samples are the same either way."""
    cache_limit: float = 32.0
    """Most GiB of that folder that this training may use; pictures beyond it are decoded each time. The files
    are mapped into memory, so that they take none that anything else needs."""
    workers: int = 2
    """Processes that prepare samples; 0 prepares them in the training process."""
    prefetch: int = 4
    """Batches that each worker prepares ahead."""

    def check(self) -> None:
        """Raises Refusal for the first value out of its range."""
        _refuse_unless(len(self.paths) > 0, "paths", "one folder or more", self.paths)
        for name, paths in (("layouts", self.paths), ("validation_layouts", self.validation_paths)):
            value = getattr(self, name)
            _refuse_unless(set(value) <= set(LAYOUTS), name, f"words out of {', '.join(LAYOUTS)}", value)
            _refuse_unless(len(value) in (1, len(paths)), name, f"one word, or one for each of {len(paths)} paths",
                           value)
        right = not self.weights or (len(self.weights) == len(self.paths) and min(self.weights) >= 0
                                     and sum(self.weights) > 0)
        _refuse_unless(right, "weights", f"empty or {len(self.paths)} numbers, none below and some above 0",
                       self.weights)
        _refuse_unless(self.gopro_blur in ("blur", "blur_gamma"), "gopro_blur", "blur or blur_gamma",
                       self.gopro_blur)
        for name, least in (("crop", 8), ("held_out", 0), ("validation_windows", 1), ("validation_size", 0),
                            ("workers", 0), ("prefetch", 1)):
            value = getattr(self, name)
            _refuse_unless(isinstance(value, int) and value >= least, name, f"a whole number from {least} on", value)
        _refuse_unless(self.cache_limit >= 0, "cache_limit", "a number of GiB from 0 on", self.cache_limit)
        self.blur.check()


def layout_of_each(layouts, paths):
    """One layout a path."""
    return list(layouts) * len(paths) if len(layouts) == 1 else list(layouts)
