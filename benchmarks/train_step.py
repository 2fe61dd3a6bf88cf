"""A training step (forward, backward, Adam) of our ops against eager torch, in one interleaved run.

    python benchmarks/train_step.py --sizes 4x128x128 --repeats 5 --json benchmarks/results/train_cpu.json

The peer is `python_ref.DBLRNet` in eager torch, channels_last, the allocator tuned. Both start from the same
weights and take the same batches. Forward and backward are timed apart; medians over interleaved rounds.
"""

import argparse
import time

import common

common.with_tuned_malloc()

import torch  # noqa: E402  (after the allocator is set)

import dblr_fast  # noqa: E402
import python_ref  # noqa: E402


class Step:
    """One network with its optimiser; calling it trains on a batch and returns (forward, backward, update) seconds."""

    def __init__(self, model, device):
        self.model, self.device = model.to(device), device
        self.optimiser = torch.optim.Adam(model.parameters(), lr=1e-4, foreach=True)

    def __call__(self, frames, target):
        moments = [self._now()]
        loss = (self.model(frames) - target).square().mean()
        moments.append(self._now())
        loss.backward()
        moments.append(self._now())
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        moments.append(self._now())
        return [b - a for a, b in zip(moments, moments[1:])]

    def _now(self):
        common.synchronize(self.device)
        return time.perf_counter()


def channels_last(model):
    """Its 4-D weights in channels_last; a 5-D one cannot take that format."""
    for p in model.parameters():
        if p.dim() == 4:
            p.data = p.data.contiguous(memory_format=torch.channels_last)
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["4x128x128"], help="BATCHxWIDTHxHEIGHT")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="where to write the results")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    ours = dblr_fast.DBLRNet().train()
    eager = python_ref.DBLRNet().train()
    eager.load_state_dict(ours.state_dict())
    steps = {"eager torch": Step(channels_last(eager), device), "ours": Step(ours, device)}
    print(f"{common.machine(device)}\n{'size':>12} {'':12} {'forward':>9} {'backward':>9} {'step':>9} "
          f"{'min..max':>17} {'TFLOP/s':>8} {'ratio':>6} {'of forward':>11} {'of backward':>12}")
    rows = []
    for size in arguments.sizes:
        batch, width, height = (int(v) for v in size.split("x"))
        work = 3 * batch * common.operations(ours, height, width)
        times = {name: [] for name in steps}
        for round_ in range(arguments.repeats + 1):
            frames = torch.rand(batch, ours.frames, height, width, device=device)
            for name, step in steps.items():
                parts = step(frames, frames[:, 2:3])
                if round_:  # the first is warm-up
                    times[name].append([*parts, sum(parts)])
        medians = {}
        for name, rounds in times.items():
            columns = [common.spread(column) for column in zip(*rounds)]
            forward, backward, _, whole = medians[name] = [c[0] for c in columns]
            first = medians["eager torch"]
            ratios = [a / b for a, b in zip(first, medians[name])]
            _, low, high = columns[3]
            rows.append(dict(size=size, candidate=name, forward_s=forward, backward_s=backward, step_s=whole,
                             min_s=low, max_s=high, repeats=len(rounds), tflops=work / whole / 1e12,
                             ratio=ratios[3], ratio_forward=ratios[0], ratio_backward=ratios[1]))
            print(f"{size:>12} {name:12} {forward:9.3f} {backward:9.3f} {whole:9.3f} {low:8.3f}..{high:7.3f} "
                  f"{work / whole / 1e12:8.3f} {ratios[3]:6.2f} {ratios[0]:11.2f} {ratios[1]:12.2f}")
    if arguments.json:
        common.write_json(arguments.json, device, rows)


if __name__ == "__main__":
    main()
