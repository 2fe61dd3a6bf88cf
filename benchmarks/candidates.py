"""Who takes part in throughput.py, and in which precision."""

from __future__ import annotations

from dataclasses import dataclass

import peers
from peers import torch_eager

from dblr_fast.backends import get
from dblr_fast.engine import Engine, fold

# Rounding alone stays well below: a result beyond is another network's, or a broken kernel's.
LARGEST_ERROR = {"exact": 1e-4, "fast": 1e-2, "half": 1e-1, "bf16": 1e-1}


@dataclass(frozen=True)
class Candidate:
    """kind: "eager", "engine" or "peer"; name: the backend's or the peer's."""

    kind: str
    name: str
    precision: str

    @property
    def key(self):
        """What --memory-of takes."""
        return f"{self.kind}:{self.name}:{self.precision}"

    @property
    def label(self):
        labels = {"eager": "eager torch, folded", "engine": f"engine, {self.name}"}
        return labels.get(self.kind) or peers.PEERS[self.name].label

    def build(self, model, frames):
        """Its function of frames; raises peers.Missing."""
        if self.kind == "engine":
            return Engine(model, backend=self.name, precision=self.precision, device=frames.device)
        if self.kind == "eager":
            return torch_eager.build(fold(model), frames, self.precision)
        return peers.build(self.name, fold(model), frames, self.precision)

    def compiles_on_first_call(self):
        return self.kind == "peer" and peers.PEERS[self.name].compiles_on_first_call


def parse(key):
    return Candidate(*key.split(":"))


def of_peers(precisions, device):
    """The precisions that peers answer with.

    On a CPU none has `fast` or `half`: users take exact, or bf16 as their 16 bits. Exact is always there, since
    every other row is read against it.
    """
    if device.type != "cpu":
        return list(precisions)
    return ["exact"] + (["bf16"] if {"half", "bf16"} & set(precisions) else [])


def chosen(precisions, backends, peer_names, device):
    """[Candidate]; eager torch first. Says in a line whom it leaves out of those asked for."""
    rivals = of_peers(precisions, device)
    found = [Candidate("eager", "torch", p) for p in rivals]
    for name in peer_names:
        label, supported = peers.PEERS[name].label, peers.precisions(name, device)
        if not set(supported) & set(rivals):
            print(f"{label} is left out: it has no {' or '.join(rivals)} on a {device.type}")
        elif device.type == "cpu" and peers.escapes_avx2(name):
            print(f"{label} is left out: nothing limits it to AVX2, and this processor has AVX-512")
        else:
            found += [Candidate("peer", name, p) for p in rivals if p in supported]
    for precision in precisions:
        for name in backends:
            if name == "torch":
                continue
            reason = get(name).unavailable(device) or get(name).precisions(device)[precision]
            if reason is None:
                found.append(Candidate("engine", name, precision))
            else:
                print(f"engine, {name}, {precision} is left out: {reason}")
    return found


def built(found, model, frames, crop):
    """({candidate: function of frames}, {candidate: its first result}) of all that can run; a line for the others.

    A peer that fails or computes something else, whatever the reason, costs its row alone; eager torch and the
    engine must not fail. crop: a peers.reference.Crop of these frames.
    """
    runs, first = {}, {}
    for candidate in found:
        name = f"{candidate.label}, {candidate.precision}"
        try:
            run = candidate.build(model, frames)
            result = run(frames).clone()
        except peers.Missing as reason:
            print(f"{name} is left out: {reason}")
            continue
        except Exception as error:
            if candidate.kind != "peer":
                raise
            print(f"{name} is left out, it failed: {(str(error).splitlines() or [type(error).__name__])[0]}")
            continue
        error = crop.error(result)
        if candidate.kind == "peer" and not error < LARGEST_ERROR[candidate.precision]:  # nan is none
            print(f"{name} is left out, it computes something else: its relative error is {error:.1e}")
            continue
        runs[candidate], first[candidate] = run, result
    return runs, first
