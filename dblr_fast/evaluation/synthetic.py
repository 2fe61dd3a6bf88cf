"""Scores on synthetic blur: a fixed, seeded set of windows from clips that training has not seen.

Needs OpenCV, and PyAV for video files, as blur synthesis does.
"""

import numpy as np
import torch

from .metrics import psnr, ssim

LENGTHS = (4.0, 8.0, 16.0, 28.0)


def validation_windows(clips, size=256, each=3, scales=(0.5, 0.5, 1.0), lengths=LENGTHS, seed=2024):
    """Blurred and sharp windows at known blur lengths.

    clips: folders of pictures or video files. size: side of the windows.
    each: windows a clip and length; window n is taken from the clip reduced by scales[n % len(scales)].
    lengths: mean path in pixels during the centre exposure.
    Returns {"4 px": (windows (n, 5, size, size), sharp (n, size, size)), ..., "sharp": ...}, float32 on the
    grid of bytes; half of the blurred scenes move along their optical flow, none carries noise or coding.
    """
    import cv2

    from ..data.blur import BlurSettings, synthesize_window, window_rng
    from ..data.clips import load_luma_clip

    cv2.setNumThreads(1)
    out = {}
    for number, path in enumerate(clips):
        clip = load_luma_clip(path, stop=45, dtype=np.uint8)
        for kind, length in enumerate((*lengths, 0.0)):
            name = f"{length:g} px" if length else "sharp"
            for n in range(each):
                scale = scales[n % len(scales)]
                rng = window_rng(seed, number, kind, n)
                middle = int(rng.integers(3, len(clip) - 3))
                frames = [cv2.resize(f, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
                          for f in clip[middle - 3:middle + 4]]
                settings = BlurSettings(size=(size, size), length=(length, length), noise=0.0, jpeg_share=0.0,
                                        sharp_share=float(not length), flow_share=0.5 if length else 0.0)
                pair = synthesize_window(np.stack(frames).astype(np.float32) / np.float32(255), rng, settings)
                blurred, sharp = (np.rint(p * 255).astype(np.float32) / np.float32(255) for p in pair)
                out.setdefault(name, []).append((blurred, sharp))
    return {name: tuple(np.stack(part) for part in zip(*pairs)) for name, pairs in out.items()}


@torch.no_grad()
def score_windows(restore, windows):
    """PSNR and SSIM of the input and of the restored frame against the sharp one, averaged over each class.

    restore: (1, T, H, W) float32 tensor -> (1, 1, H, W), clamped and rounded to bytes here, as in a file.
    windows: from `validation_windows`. Returns {class: {"windows", "psnr_input", "psnr_restored", "gain",
    "ssim_input", "ssim_restored"}}; the input of sharp windows is the sharp frame itself, so these have
    "psnr_restored" (how well a sharp frame is left alone), its least value, and "ssim_restored" only.
    """
    report = {}
    for name, (blurred, sharp) in windows.items():
        rows = []
        for window, target in zip(torch.from_numpy(blurred), torch.from_numpy(sharp)):
            restored = (restore(window[None])[0, 0].clamp(0, 1) * 255).round() / 255
            source = window[window.shape[0] // 2]
            rows.append([float(f(p, target)) for f in (psnr, ssim) for p in (source, restored)])
        least = min(row[1] for row in rows)
        before, after, ssim_before, ssim_after = np.mean(rows, 0)
        entry = {"windows": len(rows), "psnr_restored": round(after, 3),
                 "ssim_restored": round(ssim_after, 4)}
        if name == "sharp":
            entry["psnr_least"] = round(least, 3)
        else:
            entry |= {"psnr_input": round(before, 3), "gain": round(after - before, 3),
                      "ssim_input": round(ssim_before, 4)}
        report[name] = entry
    return report
