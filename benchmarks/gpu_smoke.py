"""Every kernel once at small, odd sizes: what compute-sanitizer watches (`benchmarks/gpu_check.sh` calls it).

    python benchmarks/gpu_smoke.py [train | infer]      both by default
"""

import sys

import torch

import dblr_fast
from dblr_fast.engine import Engine

DEVICE = "cuda"


def train(dtype):
    model = dblr_fast.DBLRNet(blocks=1).to(DEVICE, dtype).train()
    model(torch.rand(2, 5, 19, 21, device=DEVICE, dtype=dtype)).float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def infer(precision):
    engine = Engine(dblr_fast.DBLRNet(blocks=1).to(DEVICE).eval(), backend="cuda", precision=precision)
    assert engine(torch.rand(2, 5, 37, 53, device=DEVICE)).isfinite().all()


if __name__ == "__main__":
    parts = sys.argv[1:] or ["train", "infer"]
    with dblr_fast.use_backend("cuda"):
        for dtype in (torch.float32, torch.float16, torch.bfloat16) if "train" in parts else ():
            train(dtype)
        for precision in ("exact", "fast", "half", "bf16") if "infer" in parts else ():
            infer(precision)
    torch.cuda.synchronize()
    print("every kernel ran")
