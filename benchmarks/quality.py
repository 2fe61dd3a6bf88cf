"""Quality of the shipped weights: synthetic blur on validation clips, and real blur before and after.

    python benchmarks/quality.py --clips CLIP [CLIP ...] --real BLURRED.mp4 [--pictures DIR]

CLIP: sharp clips that training has not seen (video files or folders of pictures). BLURRED: a really blurred
video, which has no ground truth: reported are the variance of the Laplacian (a sharpness measure without a
reference; noise raises it too), the change of mean brightness, with --pictures crops before and after, and for
each level of precision how many bytes of a restored picture are others than in exact.
Writes benchmarks/results/quality.json.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch

import dblr_fast
from dblr_fast.checkpoint import find, read_metadata, save_model
from dblr_fast.data.clips import load_luma_clip
from dblr_fast.engine import Engine
from dblr_fast.evaluation.synthetic import score_windows, validation_windows
from dblr_fast.levels import LEVELS

CROP, FRAMES = 384, (4, 10, 15)


def real_blur(restore, path, pictures):
    """Three crops of a blurred video, before and after."""
    import cv2

    clip = load_luma_clip(path, stop=max(FRAMES) + 3)
    rows = []
    for number, frame in enumerate(FRAMES):
        window = clip[frame - 2:frame + 3]
        y = (window.shape[1] - CROP) // 2
        x = (window.shape[2] - CROP) * number // (len(FRAMES) - 1)
        window = np.ascontiguousarray(window[:, y:y + CROP, x:x + CROP])
        before = window[2]
        after = restore(torch.from_numpy(window)[None])[0, 0].numpy()
        variance = [float(cv2.Laplacian(p, cv2.CV_32F).var()) for p in (before, after)]
        rows.append({"frame": frame, "laplacian_variance_before": round(variance[0], 6),
                     "laplacian_variance_after": round(variance[1], 6),
                     "ratio": round(variance[1] / variance[0], 3),
                     "mean_change": round(float(after.mean() - before.mean()), 6),
                     "largest_change": round(float(np.abs(after - before).max()), 4)})
        if pictures:
            pictures.mkdir(parents=True, exist_ok=True)
            pair = np.clip(np.rint(np.hstack([before, after]) * 255), 0, 255).astype(np.uint8)
            cv2.imwrite(str(pictures / f"real_{frame:03d}.png"), pair)
    return rows


def levels(model, path):
    """{level: how often a byte of a restored picture is another than that of exact, and by how much}"""
    window = load_luma_clip(path, stop=5)
    y, x = (max(n - side, 0) // 2 for n, side in zip(window.shape[1:], (360, 640)))
    window = torch.from_numpy(np.ascontiguousarray(window[None, :, y:y + 360, x:x + 640])).float()

    def restored(level):
        return (Engine(model, precision=level)(window).clamp(0, 1) * 255).round()

    exact, rows = restored("exact"), {}
    for level in LEVELS[1:]:
        try:
            steps = (restored(level) - exact).abs()
        except ValueError as reason:
            print(f"{level} is left out: {reason}")
            continue
        rows[level] = {"other": round((steps > 0).double().mean().item(), 6),
                       "by_more_than_one": round((steps > 1).double().mean().item(), 6), "most": int(steps.max())}
    return rows


def short(synthetic):
    """The scores as the metadata of a model file holds them."""
    scores = {name: row["psnr_restored"] if name == "sharp" else [row["psnr_input"], row["psnr_restored"]]
              for name, row in synthetic.items()}
    return {"psnr_y_256_crops_blurred_and_restored": scores}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", nargs="+", required=True)
    parser.add_argument("--real")
    parser.add_argument("--model", default="default", help="shipped model or path of a safetensors file")
    parser.add_argument("--each", type=int, default=3, help="windows a clip and blur length")
    parser.add_argument("--pictures", type=Path, help="folder for crops before and after")
    parser.add_argument("--record", action="store_true", help="write the scores into the model file")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "quality.json")
    args = parser.parse_args()
    start = time.time()
    model = dblr_fast.load_model(args.model)

    @torch.no_grad()
    def restore(window):
        return model(window)

    metadata = read_metadata(find(args.model))
    report = {"model": find(args.model).name, "training": json.loads(metadata.get("training", "{}")),
              "clips": [Path(c).name for c in args.clips],
              "window": "256x256, Y, whole window scored, 8-bit output",
              "synthetic": score_windows(restore, validation_windows(args.clips, each=args.each))}
    if args.real:
        report["real"] = {"clip": Path(args.real).name, "crops": real_blur(restore, args.real, args.pictures)}
        report["bytes_other_than_of_exact"] = levels(model, args.real)
    report["machine"] = {"processor": platform.machine(), "torch": torch.__version__,
                         "dblr_fast": dblr_fast.__version__, "precision": "exact",
                         "seconds": round(time.time() - start, 1)}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1) + "\n")
    if args.record:
        path = find(args.model)
        save_model(model, path, {**metadata, "scores": json.dumps(short(report["synthetic"]))})
        path.chmod(0o644)
    for name, row in report["synthetic"].items():
        if name == "sharp":
            print(f"sharp: kept at {row['psnr_restored']:.2f} dB (least {row['psnr_least']:.2f}), "
                  f"SSIM {row['ssim_restored']:.4f}, {row['windows']} windows")
        else:
            print(f"{name}: {row['psnr_input']:.2f} -> {row['psnr_restored']:.2f} dB ({row['gain']:+.2f}), "
                  f"SSIM {row['ssim_input']:.4f} -> {row['ssim_restored']:.4f}, {row['windows']} windows")
    for row in report.get("real", {}).get("crops", []):
        print(f"real blur, frame {row['frame']}: Laplacian variance x{row['ratio']:.2f}, "
              f"mean {row['mean_change']:+.5f}, largest change {row['largest_change']:.3f}")
    for level, row in report.get("bytes_other_than_of_exact", {}).items():
        print(f"{level}: {row['other']:.4%} of bytes are others than in exact, {row['by_more_than_one']:.4%} by more "
              f"than one, {row['most']} at most")
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()
