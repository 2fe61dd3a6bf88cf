"""Train the first weights: a plain script that needs one machine and an hour or two.

    python -m dblr_fast.training.first_weights pool  --source CLIPS --pool DIR  # blurred windows onto disk
    python -m dblr_fast.training.first_weights train --pool DIR --run DIR --weights OUT.safetensors
    python -m dblr_fast.training.first_weights pack  --source CLIPS --out scratch/pack  # sharp clips, as JPEG

CLIPS is a folder of video files, of folders of pictures, or of packed clips. `train` goes on from
RUN/checkpoint.pt when there is one. The learning rate follows the wall clock, so that training ends on time
however fast the machine is, and a pause costs steps, not the schedule. At first only some residual blocks
take part; those after them and L33 to L35 pass the picture on exactly, which makes steps cheap (--stages).
On a GPU: --device cuda --batch 8 --stages 0:14:4x64,0.5:whole:4x64,0.8:whole:2x112.
"""

import argparse
import importlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch

from ..checkpoint import load_model, read_metadata, save_model
from .recipe import ALL, FlatResponse, calibrate, charbonnier, optimisers, restore, settle_, start_, wake_

# From a share of the time on, so many blocks learn from so many windows of a side. Small crops are many, large
# ones have room for long blurs and fewer zeros at their borders.
STAGES = "0:4:4x64,0.25:6:4x64,0.75:6:2x96"
TRAINED_ON = ("synthetic motion blur (random camera trajectories, optical flow for objects, several response "
              "curves) on 12 sharp clips from public repositories under Apache-2.0, BSD-3 and MIT licences")


def now():
    return time.strftime("%H:%M:%S")


def parse_stages(text):
    """"share:blocks:windows x side,..." -> [(share, depth, windows, side)]; blocks may be "whole"."""
    stages = []
    for stage in text.split(","):
        share, depth, batch = stage.split(":")
        stages.append((float(share), ALL if depth == "whole" else int(depth), *map(int, batch.split("x"))))
    if stages != sorted(stages, key=lambda stage: stage[0]) or stages[0][0] != 0:
        raise ValueError(f"expected stages in the order of their shares, the first at 0, got {text}")
    return stages


def load_class(name):
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


@torch.no_grad()
def validate(model, windows, device, depth=ALL):
    """windows: {name: uint8 (n, frames + 1, h, w)} -> {name: [mean PSNR of the input, restored]}."""
    from ..evaluation import psnr

    out = {}
    for name, shard in windows.items():
        x = torch.from_numpy(shard).to(device).float() / 255
        restored = torch.cat([restore(model, one[None, :-1], depth) for one in x])[:, 0].clamp(0, 1)
        centre = x[:, (x.shape[1] - 1) // 2]
        out[name] = [round(float(psnr(p, x[:, -1]).clamp(max=99).mean()), 3) for p in (centre, restored)]
    return out


class Run:
    """State of a training: the model, its moving average, the optimisers, and where they are in time."""

    def __init__(self, args):
        self.args, self.device = args, torch.device(args.device)
        self.folder = Path(args.run)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint = self.folder / "checkpoint.pt"
        torch.manual_seed(args.seed)
        self.stages = parse_stages(args.stages)
        self.model = start_(load_class(args.model)(), self.stages[0][1])
        self.origin = "identity, awake beside the picture's channel"
        if args.start:
            self.origin = json.loads(read_metadata(args.start).get("training", "{}"))
            self.model.load_state_dict(load_model(args.start).state_dict())
            wake_(self.model, self.stages[0][1])
        self.model.to(self.device).eval()
        self.optimisers = optimisers(self.model, args.lr, args.lr_kernels)
        self.begin, self.step, self.hours, self.tick = time.time(), 0, 0.0, time.time()
        self.scores = {}

    def start(self, batches):
        """Resume, or measure the statistics on batches of windows. Returns what holds the brightness."""
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            for optimiser, saved in zip(self.optimisers, state["optimisers"]):
                optimiser.load_state_dict(saved)
            self.begin, self.step, self.hours = state["begin"], state["step"], state["hours"]
            self.average = deepcopy(self.model)
            self.average.load_state_dict(state["average"])
        else:
            if not self.args.start:
                calibrate(self.model, batches)
            self.average = deepcopy(self.model)
        return FlatResponse(self.model)

    def save(self):
        """The checkpoint, and the average's weights as a safetensors file; each appears when complete."""
        self.hours += (time.time() - self.tick) / 3600
        self.tick = time.time()
        part = self.checkpoint.with_suffix(".part")
        torch.save({"model": self.model.state_dict(), "average": self.average.state_dict(), "step": self.step,
                    "hours": self.hours, "begin": self.begin,
                    "optimisers": [optimiser.state_dict() for optimiser in self.optimisers]}, part)
        os.replace(part, self.checkpoint)
        if self.args.weights and self.step >= self.args.ship_after:
            training = {"steps": self.step, "loss": "charbonnier, epsilon 0.1 to 0.03, relative to the blur",
                        "optimiser": f"Muon, {self.args.lr_kernels:g}, for kernels, Adam, {self.args.lr:g}, for "
                                     "the rest; 40 steps of warm-up, linear fall after a third of the time",
                        "stages": self.args.stages, "batch": self.args.batch,
                        "start": self.origin,
                        "batch_norm": "statistics measured at the start and held",
                        "weights": f"moving average, {self.args.decay:g}", "hours": round(self.hours, 2),
                        "device": self.args.device_name}
            settled = deepcopy(self.average)
            settle_(settled)
            save_model(settled, self.args.weights, {
                "format_version": "1", "luma_matrix": "bt601", "luma_range": "full", "licence": "Apache-2.0",
                "trained_on": TRAINED_ON, "training": json.dumps(training),
                "scores": json.dumps(self.scores)})

    def stage(self, share):
        return [stage for stage in self.stages if share >= stage[0]][-1]

    def advance(self, blurred, sharp, flat, share):
        """One step; returns (loss, loss of the centre frame as it is, norm of the gradient) as a tensor."""
        args = self.args
        rate = min(1.0, (self.step + 1) / 40, max(1.0 - share, 0.01) * 1.5)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * group["rate"]
        # Nearly the squared error at first: the absolute one rewards a change only where it is right more often
        # than wrong, and a network that cannot tell directions yet would hardly move.
        epsilon = 0.1 * 0.3 ** min(share, 1.0)
        middle = blurred.shape[1] // 2
        before = charbonnier(blurred[:, middle:middle + 1], sharp, epsilon)
        # Relative to the blur that is there, lest the few hopeless windows drown the others.
        weight = 1 / (before + 0.02)
        restored = restore(self.model, blurred, self.stage(share)[1])
        loss = (charbonnier(restored, sharp, epsilon) * weight).mean()
        loss.backward()
        flat.project_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), args.clip)
        for optimiser in self.optimisers:
            optimiser.step()
        flat.restore()
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(args.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for a, b in zip(self.average.parameters(), self.model.parameters()):
                a.lerp_(b, 1 - decay)
        return torch.stack([loss.detach(), (before * weight).mean(), norm])


def train(args):
    from .pool import Pool

    torch.set_num_threads(args.threads)
    run, source = Run(args), Pool(args.pool)
    windows = dict(np.load(args.validation)) if args.validation else {}
    rng = np.random.default_rng(args.seed)

    def draw(count, size):
        return [torch.from_numpy(a) for a in source.batch(count, size, rng)]

    flat = run.start(draw(4, run.stages[0][3])[0].to(run.device) for _ in range(8))
    rng = np.random.default_rng([args.seed, run.step])
    end = args.end if args.end else run.begin + args.minutes * 60
    saved = checked = time.time()
    seen = []

    def check(label, depth):
        run.scores = validate(run.average, windows, run.device, depth)
        print(f"{now()} {label} {run.step} validation {json.dumps(run.scores)}", flush=True)

    with ThreadPoolExecutor(1) as ahead:  # the next batch is cut while this one is learned from
        coming = ahead.submit(draw, run.stages[0][2] * args.batch, run.stages[0][3])
        while (share := (time.time() - run.begin) / max(end - run.begin, 1.0)) < 1 and run.step != args.steps:
            blurred, sharp = (a.to(run.device) for a in coming.result())
            _, depth, count, size = run.stage(share)
            coming = ahead.submit(draw, count * args.batch, size)
            seen = seen[-99:] + [run.advance(blurred, sharp, flat, share)]
            if run.step % args.log_every == 0:
                loss, before, norm = torch.stack(seen).mean(0).tolist()
                print(f"{now()} step {run.step} share {share:.3f} loss {loss:.5f} of {before:.5f} "
                      f"(x{loss / before:.4f}) gradient {norm:.3f}, {len(source)} windows", flush=True)
            if time.time() - checked > args.check_minutes * 60:
                if windows:
                    check("step", depth)
                source.refresh()
                checked = time.time()
            if time.time() - saved > args.save_minutes * 60:
                run.save()
                saved = time.time()
    if windows:
        check("end, step", ALL)
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
    t.add_argument("--start", help="safetensors file to go on from, its batch-norm statistics held; otherwise the "
                                   "identity")
    t.add_argument("--minutes", type=float, default=90.0, help="from the first start of the run")
    t.add_argument("--end", type=float, help="when to end instead, in seconds since 1970")
    t.add_argument("--steps", type=int, default=-1, help="end after so many steps at the latest")
    t.add_argument("--batch", type=int, default=1, help="times the windows of a stage")
    t.add_argument("--stages", default=STAGES, help="share of the time:blocks (or whole):windows x side, ...")
    t.add_argument("--lr", type=float, default=1e-3, help="of Adam, for scales and thresholds")
    t.add_argument("--lr-kernels", type=float, default=0.01, help="of Muon, for kernels")
    t.add_argument("--decay", type=float, default=0.995, help="of the moving average of the weights")
    t.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient")
    t.add_argument("--model", default="dblr_fast:DBLRNet", help="module:class")
    t.add_argument("--device", default="cpu")
    t.add_argument("--device-name", default="CPU", help="for the metadata")
    t.add_argument("--threads", type=int, default=1)
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
        from .memory import keep_freed_memory

        keep_freed_memory()  # as `dblr-fast train` does
        train(args)


if __name__ == "__main__":
    main()
