"""Train the first weights: a plain script that needs one machine and an hour or two.

    python -m dblr_fast.training.first_weights pool  --source CLIPS --pool DIR  # blurred windows onto disk
    python -m dblr_fast.training.first_weights train --pool DIR --run DIR --weights OUT.safetensors
    python -m dblr_fast.training.first_weights pack  --source CLIPS --out scratch/pack  # sharp clips, as JPEG

CLIPS is a folder of video files, of folders of pictures, or of packed clips. `train` goes on from
RUN/checkpoint.pt when there is one. The learning rate follows the wall clock, so that training ends on time
however fast the machine is, and a pause costs steps, not the schedule. On a GPU: --device cuda --batch 8.
"""

import argparse
import importlib
import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch

from ..initialization import identity_
from .recipe import FlatResponse, calibrate, charbonnier, learning_rates

# Share of the time at which a batch (windows, side) takes over: small crops are many, large ones have room
# for long blurs and fewer zeros at their borders.
STAGES = ((0.0, 3, 80), (0.6, 2, 104))
TRAINED_ON = ("synthetic motion blur (random camera trajectories, optical flow for objects, several response "
              "curves) on 12 sharp clips from public repositories under Apache-2.0, BSD-3 and MIT licences")


def now():
    return time.strftime("%H:%M:%S")


def load_class(name):
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


@torch.no_grad()
def validate(model, windows, device):
    """windows: {name: uint8 (n, frames + 1, h, w)} -> {name: [mean PSNR of the input, restored]}."""
    from ..evaluation import psnr

    out = {}
    for name, shard in windows.items():
        x = torch.from_numpy(shard).to(device).float() / 255
        restored = torch.cat([model(one[None, :-1]) for one in x])[:, 0]
        centre = x[:, (x.shape[1] - 1) // 2]
        out[name] = [round(float(psnr(p, x[:, -1]).clamp(max=99).mean()), 3) for p in (centre, restored)]
    return out


class Run:
    """State of a training: the model, its moving average, the optimiser, and where they are in time."""

    def __init__(self, args):
        self.args, self.device = args, torch.device(args.device)
        self.folder = Path(args.run)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint = self.folder / "checkpoint.pt"
        torch.manual_seed(args.seed)
        self.model = identity_(load_class(args.model)()).to(self.device).eval()
        scales = learning_rates(self.model)
        groups = [{"params": [p], "scale": scales[name]} for name, p in self.model.named_parameters()]
        self.optimiser = torch.optim.Adam(groups, lr=args.lr, betas=(0.9, 0.99), foreach=True)
        self.begin, self.step, self.hours, self.tick = time.time(), 0, 0.0, time.time()
        self.scores = {}

    def start(self, batches):
        """Resume, or measure the statistics on batches of windows. Returns what holds the brightness."""
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.begin, self.step, self.hours = state["begin"], state["step"], state["hours"]
            self.average = deepcopy(self.model)
            self.average.load_state_dict(state["average"])
        else:
            FlatResponse.clear(self.model)
            calibrate(self.model, batches)
            self.average = deepcopy(self.model)
        return FlatResponse(self.model)

    def save(self):
        """The checkpoint, and the average's weights as a safetensors file; each appears when complete."""
        self.hours += (time.time() - self.tick) / 3600
        self.tick = time.time()
        part = self.checkpoint.with_suffix(".part")
        torch.save({"model": self.model.state_dict(), "average": self.average.state_dict(), "step": self.step,
                    "hours": self.hours, "optimiser": self.optimiser.state_dict(), "begin": self.begin}, part)
        os.replace(part, self.checkpoint)
        if self.args.weights and self.step >= self.args.ship_after:
            from ..checkpoint import save_model

            training = {"steps": self.step, "loss": "charbonnier, epsilon 0.03 to 0.01",
                        "learning_rate": f"Adam, {self.args.lr:g}, 40 steps of warm-up, cosine to the end",
                        "batches": ", then ".join(f"{n * self.args.batch}x{s}x{s}" for _, n, s in STAGES),
                        "start": "identity", "batch_norm": "statistics measured at the start and held",
                        "weights": f"moving average, {self.args.decay:g}", "hours": round(self.hours, 2),
                        "device": self.args.device_name}
            save_model(self.average, self.args.weights, {
                "format_version": "1", "luma_matrix": "bt601", "luma_range": "full", "licence": "Apache-2.0",
                "trained_on": TRAINED_ON, "training": json.dumps(training),
                "scores": json.dumps(self.scores)})

    def advance(self, blurred, sharp, flat, share):
        """One step of Adam; returns (loss, loss of the centre frame as it is, norm of the gradient)."""
        args = self.args
        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))
        rate = args.lr * min(1.0, (self.step + 1) / 40) * cosine
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        # Edges first; later small errors count more, which keeps sharp pictures sharp.
        epsilon = 0.03 * 0.3 ** min(share, 1.0)
        middle = blurred.shape[1] // 2
        before = charbonnier(blurred[:, middle:middle + 1], sharp, epsilon)
        # Partly relative to the blur that is there, lest the few hopeless windows drown the others.
        weight = 1 / (before + 0.1)
        self.optimiser.zero_grad(set_to_none=True)
        loss = (charbonnier(self.model(blurred), sharp, epsilon) * weight).mean()
        loss.backward()
        flat.project_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), args.clip)
        self.optimiser.step()
        flat.restore()
        self.step += 1
        decay = min(args.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for a, b in zip(self.average.parameters(), self.model.parameters()):
                a.lerp_(b, 1 - decay)
        return float(loss.detach()), float((before * weight).mean()), float(norm)


def train(args):
    from .pool import Pool

    torch.set_num_threads(args.threads)
    run, source = Run(args), Pool(args.pool)
    windows = dict(np.load(args.validation)) if args.validation else {}
    rng = np.random.default_rng(args.seed)

    def draw(count, size):
        return [torch.from_numpy(a) for a in source.batch(count, size, rng)]

    flat = run.start(draw(4, STAGES[0][2])[0].to(run.device) for _ in range(8))
    rng = np.random.default_rng([args.seed, run.step])
    end = args.end if args.end else run.begin + args.minutes * 60
    saved = checked = time.time()
    seen = []

    def check(label):
        run.scores = validate(run.average, windows, run.device)
        print(f"{now()} {label} {run.step} validation {json.dumps(run.scores)}", flush=True)

    with ThreadPoolExecutor(1) as ahead:  # the next batch is cut while this one is learned from
        coming = ahead.submit(draw, STAGES[0][1] * args.batch, STAGES[0][2])
        while (share := (time.time() - run.begin) / max(end - run.begin, 1.0)) < 1 and run.step != args.steps:
            blurred, sharp = (a.to(run.device) for a in coming.result())
            _, count, size = [stage for stage in STAGES if share >= stage[0]][-1]
            coming = ahead.submit(draw, count * args.batch, size)
            seen = seen[-99:] + [run.advance(blurred, sharp, flat, share)]
            if run.step % args.log_every == 0:
                loss, before, norm = np.mean(seen, 0)
                print(f"{now()} step {run.step} share {share:.3f} loss {loss:.5f} of {before:.5f} "
                      f"(x{loss / before:.4f}) gradient {norm:.3f}, {len(source)} windows", flush=True)
            if time.time() - checked > args.check_minutes * 60:
                if windows:
                    check("step")
                source.refresh()
                checked = time.time()
            if time.time() - saved > args.save_minutes * 60:
                run.save()
                saved = time.time()
    if windows:
        check("end, step")
    run.save()


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser("pool", help="make blurred windows from sharp clips")
    p.add_argument("--source", required=True)
    p.add_argument("--pool", required=True)
    p.add_argument("--rounds", type=int, default=10)
    p.add_argument("--first-round", type=int, default=0)
    p.add_argument("--count", type=int, default=40, help="windows a clip and round")
    p.add_argument("--workers", type=int, default=1, help="processes")
    k = commands.add_parser("pack", help="sharp clips as a few dozen MiB of JPEG, to be a --source elsewhere")
    k.add_argument("--source", required=True)
    k.add_argument("--out", default="scratch/pack")
    k.add_argument("--runs", type=int, default=7, help="runs of five frames a clip")
    t = commands.add_parser("train", help="train from a pool")
    t.add_argument("--pool", required=True)
    t.add_argument("--run", required=True, help="folder of the checkpoint")
    t.add_argument("--minutes", type=float, default=90.0, help="from the first start of the run")
    t.add_argument("--end", type=float, help="when to end instead, in seconds since 1970")
    t.add_argument("--steps", type=int, default=-1, help="end after so many steps at the latest")
    t.add_argument("--batch", type=int, default=1, help="times the batch that suits two CPU cores")
    t.add_argument("--lr", type=float, default=1.5e-4)
    t.add_argument("--decay", type=float, default=0.99, help="of the moving average of the weights")
    t.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient")
    t.add_argument("--model", default="dblr_fast:DBLRNet", help="module:class")
    t.add_argument("--device", default="cpu")
    t.add_argument("--device-name", default="CPU", help="for the metadata")
    t.add_argument("--threads", type=int, default=2)
    t.add_argument("--seed", type=int, default=0)
    t.add_argument("--validation", help=".npz of uint8 windows (n, frames + 1, h, w) to score")
    t.add_argument("--check-minutes", type=float, default=8.0)
    t.add_argument("--save-minutes", type=float, default=4.0)
    t.add_argument("--log-every", type=int, default=25, help="steps")
    t.add_argument("--weights", help="safetensors file to write at every save")
    t.add_argument("--ship-after", type=int, default=150, help="first step whose weights are worth writing")
    args = parser.parse_args(argv)
    if args.command == "pool":
        from .pool import build_pool

        build_pool(args.source, args.pool, args.rounds, args.first_round, args.count, args.workers)
    elif args.command == "pack":
        from .pack import build_pack

        build_pack(args.source, args.out, args.runs)
    else:
        train(args)


if __name__ == "__main__":
    main()
