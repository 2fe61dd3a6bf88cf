"""A training step (forward, backward, Adam) of our ops against eager torch, in one interleaved run.

    python benchmarks/train_step.py --sizes 4x128x128 --repeats 5 --json benchmarks/results/train_cpu.json
    python benchmarks/train_step.py --device cuda --autocast half --repeats 30

The peer is `python_ref.DBLRNet` in eager torch, channels_last, the allocator tuned. Both start from the same
weights and take the same batches. On a CPU forward and backward are timed apart; on a GPU the whole step is,
between device events, also as one CUDA graph for each. Medians over interleaved rounds.
"""

import argparse
import time

import common

common.with_tuned_malloc()

import torch  # noqa: E402  (after the allocator is set)

import dblr_fast  # noqa: E402
import python_ref  # noqa: E402


class Step:
    """One network with its optimiser; calling it trains on a batch and returns seconds."""

    def __init__(self, model, device, autocast=None):
        self.model, self.device, self.autocast = model.to(device), device, autocast
        self.optimiser = torch.optim.Adam(model.parameters(), lr=1e-4, foreach=True, capturable=device.type == "cuda")

    def loss(self, frames, target):
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            return (self.model(frames).float() - target).square().mean()

    def __call__(self, frames, target):
        moments = [self._now()]
        loss = self.loss(frames, target)
        moments.append(self._now())
        loss.backward()
        moments.append(self._now())
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        moments.append(self._now())
        forward, backward, _ = (b - a for a, b in zip(moments, moments[1:]))
        return {"step": moments[-1] - moments[0], "forward": forward, "backward": backward}

    def _now(self):
        common.synchronize(self.device)
        return time.perf_counter()


class DeviceStep(Step):
    """On a GPU: the whole step, launched call by call or replayed as one CUDA graph."""

    def __init__(self, model, device, autocast, graph, example):
        super().__init__(model, device, autocast)
        self.inputs, self.graph = [t.clone() for t in example], None
        if not graph:
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.run()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.run()

    def run(self):
        self.optimiser.zero_grad(set_to_none=True)
        self.loss(*self.inputs).backward()
        self.optimiser.step()

    def __call__(self, *batch):
        for mine, new in zip(self.inputs, batch):
            mine.copy_(new)
        return {"step": common.timed(self.graph.replay if self.graph else self.run, self.device)}


def channels_last(model):
    """Its 4-D weights in channels_last; a 5-D one cannot take that format."""
    for p in model.parameters():
        if p.dim() == 4:
            p.data = p.data.contiguous(memory_format=torch.channels_last)
    return model


def candidates(device, autocast, example):
    """{name: step}, all from the same weights."""
    torch.manual_seed(0)
    state = dblr_fast.DBLRNet().state_dict()

    def model(module):
        made = module.DBLRNet().train()
        made.load_state_dict(state)
        return made if module is dblr_fast else channels_last(made)

    if device.type != "cuda":
        return {"eager torch": Step(model(python_ref).to(device), device, autocast),
                "ours": Step(model(dblr_fast).to(device), device, autocast)}
    return {name + (", CUDA graph" if graph else ""):
            DeviceStep(model(module).to(device), device, autocast, graph, example)
            for graph in (False, True) for name, module in (("eager torch", python_ref), ("ours", dblr_fast))}


def medians(rounds):
    return {part: common.spread([r[part] for r in rounds])[0] for part in rounds[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["4x128x128"], help="BATCHxWIDTHxHEIGHT")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--autocast", choices=["half", "bf16"], help="torch.autocast in this dtype")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="where to write the results")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    print(common.machine(device))
    rows = []
    for size in arguments.sizes:
        batch, width, height = (int(v) for v in size.split("x"))
        frames = torch.rand(batch, 5, height, width, device=device)
        steps = candidates(device, common.DTYPES.get(arguments.autocast), (frames, frames[:, 2:3]))
        model = steps["ours"].model
        work = 3 * batch * common.operations(model, height, width)
        times = {name: [] for name in steps}
        for round_ in range(arguments.repeats + 1):
            frames = torch.rand(batch, model.frames, height, width, device=device)
            for name, step in steps.items():
                seconds = step(frames, frames[:, 2:3])
                if round_:  # the first is warm-up
                    times[name].append(seconds)
        eager = medians(times["eager torch"])
        for name, rounds in times.items():
            ours = medians(rounds)
            _, low, high = common.spread([r["step"] for r in rounds])
            rows.append(dict(size=size, candidate=name, repeats=len(rounds), min_s=low, max_s=high,
                             tflops=work / ours["step"] / 1e12)
                        | {f"{part}_s": v for part, v in ours.items()}
                        | {f"ratio_{part}": eager[part] / v for part, v in ours.items()})
            parts = "   ".join(f"{part} {v * 1e3:.2f} ms (x{eager[part] / v:.2f})" for part, v in ours.items())
            print(f"{size:>12} {name:24} {parts}   {low * 1e3:.2f}..{high * 1e3:.2f} ms, "
                  f"{rows[-1]['tflops']:.3f} TFLOP/s")
    if arguments.json:
        common.write_json(arguments.json, device, rows)


if __name__ == "__main__":
    main()
