"""Train the first weights: a plain script that needs one machine and an hour or two.

    python -m dblr_fast.training.first_weights pool  --source CLIPS --pool DIR      # blurred windows onto disk
    python -m dblr_fast.training.first_weights train --pool DIR --run DIR --minutes 90
    python -m dblr_fast.training.first_weights pack  --source CLIPS --out scratch/pack  # sharp clips as JPEG

`train` goes on from RUN/checkpoint.pt when there is one. The learning rate follows the wall clock, so that
training ends on time however fast the machine is, and a pause costs steps, not the schedule.
"""

import argparse
import importlib
import json
import math
import os
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch

from ..initialization import identity_

# Share of the time at which a batch (windows, side) takes over: small crops are many, large ones have room for
# long blurs and fewer zeros at their borders.
STAGES = ((0.0, 3, 80), (0.6, 2, 104))


def load_class(name):
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def charbonnier(restored, sharp, epsilon, border=12):
    """Mean of sqrt(d^2 + epsilon^2) of each window, (N,): quadratic below epsilon, the absolute error above. The
    border, where zeros and light from outside the crop reach in, hardly counts."""
    error = torch.sqrt((restored - sharp) ** 2 + epsilon ** 2)
    weight = torch.full_like(error[:1], 0.05)
    weight[..., border:-border, border:-border] = 1.0
    return (error * weight).sum((1, 2, 3)) / weight.sum()


@torch.no_grad()
def calibrate(model, batches):
    """Set the running statistics of every batch norm to the mean over `batches` of windows."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    sums = None
    for count, window in enumerate(batches, 1):
        for m in norms:
            m.momentum = 1.0
        model.train()(window)
        now = [torch.stack([m.running_mean, m.running_var]) for m in norms]
        sums = now if sums is None else [a + b for a, b in zip(sums, now)]
    for m, momentum, total in zip(norms, momenta, sums):
        m.momentum = momentum
        m.running_mean.copy_(total[0] / count)
        m.running_var.copy_(total[1] / count)
    model.eval()


def learning_rates(model):
    """{parameter name: factor of the learning rate}. Gammas start at zero and learn faster; L1, L2, L33 and L34,
    through which the identity passes, slower than the body; biases and shifts, whose steps are jumps of
    brightness, slowest."""
    scales = {}
    for name, _ in model.named_parameters():
        if name.endswith("bias"):
            scales[name] = 0.05
        elif ".bn." in name:
            scales[name] = 4.0
        else:
            scales[name] = 0.5 if name.split(".")[0] in ("conv1", "conv2", "conv33", "conv34") else 1.0
    return scales


class Orthogonal:
    """Momentum whose step, as a matrix (filters, taps), is made orthogonal (Muon; Jordan et al., 2024).

    Every direction of a layer moves alike, the many weak ones of detail as far as the one strong one, which
    makes a few hundred steps go further. `rate` of the learning rate is the step's root mean square.
    """

    def __init__(self, weights, momentum=0.95):
        self.weights, self.momentum = weights, momentum
        self.buffers = [torch.zeros_like(w) for w in weights]

    @staticmethod
    def orthogonalise(g):
        """(layers, rows, columns) -> nearest matrices with orthonormal rows, by five Newton-Schulz steps."""
        x = g / (g.norm(dim=(1, 2), keepdim=True) + 1e-12)
        for _ in range(5):
            a = x @ x.mT
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        return x

    @torch.no_grad()
    def step(self, rates):
        """rates: the root mean square of each weight's step."""
        shapes = {}
        for i, (w, b) in enumerate(zip(self.weights, self.buffers)):
            b.mul_(self.momentum).add_(w.grad)
            shapes.setdefault(tuple(w.shape), []).append(i)
        for shape, members in shapes.items():
            g = torch.stack([(self.weights[i].grad + self.momentum * self.buffers[i]).flatten(1) for i in members])
            steps = self.orthogonalise(g)
            for i, step in zip(members, steps):
                self.weights[i].sub_(step.view(shape) * (rates[i] * g.shape[2] ** 0.5))


class FlatResponse:
    """Holds the sum of every kernel where it is, so that filters change what they do to detail alone.

    All pixels agree on brightness, so without this every Adam step is first of all a jump of brightness
    (15 times the rest, measured) and the next step's gradient mostly mends it. Blur does not change flat
    regions; biases, scales and shifts stay free.
    """

    def __init__(self, model):
        self.weights = [m.weight for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Conv3d))]
        self.means = [self.mean(w.detach()) for w in self.weights]

    @staticmethod
    @torch.no_grad()
    def clear(model):
        """Make what the residual branches add free of brightness: kernels that sum to zero."""
        for last in [block.second for block in model.blocks] + [model.conv32]:
            last.conv.weight.sub_(FlatResponse.mean(last.conv.weight))

    @staticmethod
    def mean(w):
        return w.mean(tuple(range(2, w.dim())), keepdim=True)

    @torch.no_grad()
    def project_gradients(self):
        for w in self.weights:
            w.grad.sub_(self.mean(w.grad))

    @torch.no_grad()
    def restore(self):
        for w, mean in zip(self.weights, self.means):
            w.sub_(self.mean(w) - mean)


def psnr_of(a, b):
    return float(-10 * torch.log10(((a - b) ** 2).mean((1, 2, 3)) + 1e-12).mean())


@torch.no_grad()
def validate(model, windows, device):
    """windows: {name: uint8 (n, frames + 1, h, w)} -> {name: [PSNR of the input, PSNR restored]}; for windows
    that are sharp the first is against itself, and left out."""
    out = {}
    for name, shard in windows.items():
        x = torch.from_numpy(shard).to(device).float() / 255
        restored = torch.cat([model(one[None, :-1]) for one in x])
        centre = x[:, (x.shape[1] - 1) // 2][:, None]
        out[name] = [round(psnr_of(centre, x[:, -1:]), 3), round(psnr_of(restored, x[:, -1:]), 3)]
    return out


def save_weights(model, path, info):
    """The shipped file: safetensors with metadata, written beside its target and renamed when complete."""
    from safetensors.torch import save_file

    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    metadata = {
        "format": "dblr_fast", "format_version": "1", "variant": model.variant, "frames": str(model.frames),
        "tail_skip": str(model.tail_skip).lower(), "width": str(model.conv33.in_channels),
        "blocks": str(len(model.blocks)), "luma_matrix": "bt601", "luma_range": "full",
        "licence": "Apache-2.0", **info}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_file(tensors, str(part), metadata)
    os.replace(part, path)


TRAINED_ON = ("synthetic motion blur (random camera trajectories, optical flow for objects, several response curves) "
              "on 12 sharp clips from public repositories under Apache-2.0, BSD-3 and MIT licences")


def train(args):
    from .pool import Pool

    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    run = Path(args.run)
    run.mkdir(parents=True, exist_ok=True)
    checkpoint = run / "checkpoint.pt"
    torch.manual_seed(args.seed)
    model = identity_(load_class(args.model)()).to(device)
    source = Pool(args.pool)
    begin, step, hours = time.time(), 0, 0.0
    rng = np.random.default_rng(args.seed)

    def draw(count, size):
        return [torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in source.batch(count, size, rng)]

    scales = learning_rates(model)
    named = list(model.named_parameters())
    matrix = [name for name, p in named if args.orthogonal and p.dim() >= 4 and p.shape[0] > 1]
    optimiser = torch.optim.Adam([{"params": [p], "scale": scales[name]} for name, p in named if name not in matrix],
                                 lr=args.lr, betas=(0.9, 0.99), foreach=True)
    orthogonal = Orthogonal([dict(named)[name] for name in matrix])
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        if "momentum" in state:
            optimiser.load_state_dict(state["optimiser"])
            orthogonal.buffers = state["momentum"]
        begin, step, hours = state["begin"], state["step"], state["hours"]
        rng = np.random.default_rng([args.seed, step])
    else:
        # The statistics are measured once and held: a picture is then treated alike in training and in use,
        # whatever else is in the batch.
        FlatResponse.clear(model)
        calibrate(model, (draw(4, 96)[0] for _ in range(8)))
    model.eval()
    flat = FlatResponse(model)
    average = deepcopy(model)
    if checkpoint.exists():
        average.load_state_dict(state["average"])
    end = args.end if args.end else begin + args.minutes * 60
    windows = dict(np.load(args.validation)) if args.validation else {}
    last_save = last_check = time.time()
    last_tick, seen = time.time(), []

    def save(final=False):
        nonlocal hours, last_tick
        hours += (time.time() - last_tick) / 3600
        last_tick = time.time()
        part = checkpoint.with_suffix(".part")
        torch.save({"model": model.state_dict(), "average": average.state_dict(), "step": step, "hours": hours,
                    "optimiser": optimiser.state_dict(), "momentum": orthogonal.buffers, "begin": begin}, part)
        os.replace(part, checkpoint)
        if args.weights and step >= args.ship_after:
            training = {"steps": step, "loss": "charbonnier, epsilon 0.02 to 0.002", "learning_rate": f"Adam {args.lr:g}, cosine",
                        "batches": "4x64x64, then 2x96x96", "batch_norm": "statistics held from the start",
                        "weights": "exponential moving average", "hours": round(hours, 2), "device": args.device_name}
            save_weights(average, args.weights, {"trained_on": TRAINED_ON, "training": json.dumps(training),
                                                 "scores": json.dumps(scores)})

    scores = {}
    while True:
        now = time.time()
        share = (now - begin) / max(end - begin, 1.0)
        if share >= 1 or args.steps and step >= args.steps:
            break
        count, size = [stage[1:] for stage in STAGES if share >= stage[0]][-1]
        count *= args.batch
        rate = args.lr * min(1.0, (step + 1) / 40) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        blurred, sharp = draw(count, size)
        optimiser.zero_grad(set_to_none=True)
        # Edges first; later small errors count too, which keeps sharp pictures exactly sharp.
        epsilon = 0.02 * 0.1 ** min(share, 1.0)
        middle = blurred.shape[1] // 2
        before = charbonnier(blurred[:, middle:middle + 1], sharp, epsilon)
        # Relative to the blur that is there, lest the few hopeless windows drown the many that can be helped.
        loss = (charbonnier(model(blurred), sharp, epsilon) / (before + 0.03)).mean()
        loss.backward()
        flat.project_gradients()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        optimiser.step()
        orthogonal.step([args.orthogonal * rate * scales[name] for name in matrix])
        flat.restore()
        step += 1
        with torch.no_grad():
            decay = min(args.decay, (1 + step) / (10 + step))
            for a, b in zip(average.parameters(), model.parameters()):
                a.lerp_(b, 1 - decay)
            seen.append((float(loss), float((before / (before + 0.03)).mean()), float(norm)))
        if step % 10 == 0:
            mean = np.mean(seen[-25:], 0)
            print(f"{time.strftime('%H:%M:%S')} step {step} share {share:.3f} lr {rate:.2e} loss {mean[0]:.5f} "
                  f"of {mean[1]:.5f} (x{mean[0] / mean[1]:.4f}, x{np.mean(seen[-100:], 0)[0] / np.mean(seen[-100:], 0)[1]:.4f}) "
                  f"norm {mean[2]:.4f} {len(source)} windows", flush=True)
        if now - last_check > args.check_minutes * 60 and windows:
            scores = validate(average, windows, device)
            print(f"{time.strftime('%H:%M:%S')} step {step} validation {json.dumps(scores)}", flush=True)
            last_check = time.time()
            source.refresh()
        if now - last_save > args.save_minutes * 60:
            save()
            last_save = time.time()
    if windows:
        scores = validate(average, windows, device)
        print(f"end: step {step} validation {json.dumps(scores)}", flush=True)
    save(final=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    k.add_argument("--runs", type=int, default=14, help="runs of five frames a clip")
    t = commands.add_parser("train", help="train from a pool")
    t.add_argument("--pool", required=True)
    t.add_argument("--run", required=True, help="folder of the checkpoint")
    t.add_argument("--minutes", type=float, default=90.0, help="from the first start of the run")
    t.add_argument("--end", type=float, help="when to end instead, in seconds since 1970")
    t.add_argument("--steps", type=int, help="end after so many steps at the latest")
    t.add_argument("--batch", type=int, default=1, help="times the batch that suits two CPU cores")
    t.add_argument("--lr", type=float, default=1.5e-4)
    t.add_argument("--orthogonal", type=float, default=0.0, help="root mean square of a filter's step, of the rate")
    t.add_argument("--decay", type=float, default=0.99, help="of the moving average of the weights")
    t.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient")
    t.add_argument("--model", default="dblr_fast:DBLRNet", help="module:class")
    t.add_argument("--device", default="cpu")
    t.add_argument("--device-name", default="CPU, 2 threads")
    t.add_argument("--threads", type=int, default=2)
    t.add_argument("--seed", type=int, default=0)
    t.add_argument("--validation", help=".npz of windows to score from time to time")
    t.add_argument("--check-minutes", type=float, default=8.0)
    t.add_argument("--save-minutes", type=float, default=4.0)
    t.add_argument("--weights", help="safetensors file to write at every save")
    t.add_argument("--ship-after", type=int, default=150, help="first step whose weights are worth writing")
    args = parser.parse_args()
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
