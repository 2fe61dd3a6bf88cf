"""What the tests of training data share: small footage and small trees in the layouts of the published sets."""

import cv2
import numpy as np

from dblr_fast.data import BlurConfig, DataConfig


def texture(height, width, seed=0):
    """(height, width) uint8: edges and detail at several scales."""
    rng = np.random.default_rng(seed)
    parts = [cv2.resize(rng.random((height // s + 2, width // s + 2)), (width, height), interpolation=cv2.INTER_CUBIC)
             for s in (3, 9, 30)]
    return np.clip(255 * sum(parts) / 3, 0, 255).astype(np.uint8)


def colours(height, width, seed=0):
    """(height, width, 3) uint8."""
    return np.stack([texture(height, width, 3 * seed + i) for i in range(3)], -1)


def write_pictures(folder, count=8, size=(60, 80), seed=0, start=0, suffix=".png", digits=5, make=colours):
    """Pictures of a pan by two pixels a frame; returns the folder. size: (height, width)."""
    folder.mkdir(parents=True, exist_ok=True)
    wide = make(size[0], size[1] + 2 * count, seed)
    for i in range(count):
        cv2.imwrite(str(folder / f"{start + i:0{digits}d}{suffix}"), wide[:, 2 * i:2 * i + size[1]])
    return folder


def coded_pictures(folder, count, size=(40, 48), offset=0):
    """Grey pictures in which each pixel tells its frame, row and column: see `decoded`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, columns = np.indices(size)
    for i in range(count):
        cv2.imwrite(str(folder / f"{i:05d}.png"), ((rows + 3 * columns + 20 * i + offset) % 256).astype(np.uint8))


def dvd(root, videos=("IMG_0001", "IMG_0002", "IMG_0030"), **options):
    for n, name in enumerate(videos):
        for part in ("input", "GT"):
            write_pictures(root / "quantitative_datasets" / name / part, seed=n, suffix=".jpg", **options)
    return root


def gopro(root, kinds=("blur", "blur_gamma", "sharp"), **options):
    for split, names in (("train", ("GOPR0372_07_00", "GOPR0374_11_00")), ("test", ("GOPR0384_11_00",))):
        for n, name in enumerate(names):
            for part in kinds:
                write_pictures(root / split / name / part, seed=n, start=1, digits=6, **options)
    return root


def reds(root, **options):
    for split, names in (("train", ("000", "001")), ("val", ("000",))):
        for n, name in enumerate(names):
            for part in ("blur", "sharp"):
                write_pictures(root / f"{split}_{part}" / name, seed=n, digits=8, **options)
    return root


def kitti(root, scenes=3, size=(40, 60)):
    for part in ("blur", "sharp"):
        for camera in ("image_2", "image_3"):
            folder = root / part / camera
            folder.mkdir(parents=True)
            for scene in range(scenes):
                for frame in (9, 10, 11):
                    cv2.imwrite(str(folder / f"{scene:06d}_{frame:02d}.png"), colours(*size, scene))
    return root


def settings(*paths, cache="off", **changes):
    """A small configuration. changes: fields of DataConfig, and of BlurConfig with "blur_" before them."""
    blur = {name[5:]: changes.pop(name) for name in list(changes) if name.startswith("blur_")}
    return DataConfig(paths=tuple(map(str, paths)), crop=changes.pop("crop", 24), cache=str(cache), workers=0,
                      blur=BlurConfig(**blur), **changes)


CLEAN = {"blur_sharp_share": 0.0, "blur_flow_share": 0.0, "blur_noise": 0.0, "blur_coding_share": 0.0}
