"""The processes that train together: who they are, what they agree on, and batch norm over all of them."""

from __future__ import annotations

import ctypes
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import Refusal


@dataclass(frozen=True)
class Ranks:
    """This process among `world` ones; rank 0 writes files and speaks."""

    rank: int = 0
    world: int = 1
    local: int = 0
    device: torch.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes of a tensor of one shape, the same in each, bit by bit."""
        if self.world > 1:
            dist.all_reduce(values)
            values /= self.world
        return values

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def from_first(self, tensors) -> None:
        """Overwrites tensors with those of rank 0."""
        if self.world > 1:
            for t in tensors:
                dist.broadcast(t, 0)

    def gather(self, thing) -> list:
        """The same picklable thing of every process, in order of ranks, in every process."""
        if self.world == 1:
            return [thing]
        things = [None] * self.world
        dist.all_gather_object(things, thing)
        return things

    def agree(self, function):
        """function() of this process. Where it raises Refusal in one, all raise the first of these, so that no
        process waits for one that has left."""
        result = said = None
        try:
            result = function()
        except Refusal as refusal:
            said = str(refusal)
        for message in self.gather(said):
            if message:
                raise Refusal(message)
        return result

    def in_turn(self, function):
        """As `agree`; the first process of each machine goes first, since what it leaves in a cache on disk
        saves the others the work."""
        early = self.agree(function if self.local == 0 else lambda: None)
        late = self.agree(function if self.local else lambda: None)
        return late if self.local else early


def placement(environment=os.environ) -> dict[str, str] | None:
    """What torch.distributed wants to know, out of torchrun's or SLURM's environment; None for one process.

    SLURM's is believed only inside `srun` (SLURM_STEP_NUM_TASKS): a batch script that runs Python itself has
    SLURM_NTASKS too, and would wait for processes that nobody starts. Raises Refusal where it is incomplete.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        out = {key: environment[key] for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
               if key in environment}
        out["LOCAL_RANK"] = environment.get("LOCAL_RANK", "0")
    elif int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
        out = {"RANK": environment.get("SLURM_PROCID", ""), "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
               "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
               "MASTER_ADDR": environment.get("MASTER_ADDR") or first_host(nodes),
               # Jobs that share a node must not meet at one port; all processes of a job must.
               "MASTER_PORT": environment.get("MASTER_PORT")
               or str(15000 + int(environment.get("SLURM_JOB_ID", "0")) % 20000)}
    else:
        return None
    for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        if not out.get(key):
            raise Refusal(f"several processes were announced, but {key} is not known; start them with torchrun, "
                          f"or with srun, or set {key}")
    return out if int(out["WORLD_SIZE"]) > 1 else None


def first_host(nodes: str) -> str:
    """The first host of SLURM's list: "gpu[07-09,12]-a,login" -> "gpu07-a"."""
    return re.sub(r"^([^,\[]*)(?:\[([^\],-]*)[^\]]*\]([^,]*))?.*$", r"\1\2\3", nodes)


def choose_device(name: str, local: int, processes: bool) -> torch.device:
    """The device a setting names for this process. Raises Refusal for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise Refusal(f"device must be auto, cpu, cuda or one like cuda:1; got {name!r}")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        # Under SLURM each process may see its own GPU alone.
        index = (local if count > 1 else 0) if processes else (device.index or 0)
        if index >= count:
            raise Refusal(f"device {name!r} asks for GPU {index}, and torch sees {count} here; choose another, "
                          "or --device cpu" + (", or start fewer processes a node" if processes else ""))
        device = torch.device("cuda", index)
    return device


@contextmanager
def joined(device: str, backend: str = "auto", timeout: float = 1800.0):
    """Context in which this process is one of those that the environment announces: gives its Ranks.

    device: a setting, see `choose_device`; with several processes each takes the GPU of its local rank.
    """
    where = placement()
    if where is None:
        chosen = choose_device(device, 0, False)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        yield Ranks(device=chosen)
        return
    chosen = choose_device(device, int(where["LOCAL_RANK"]), True)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    os.environ.update(where)
    kind = ("nccl" if chosen.type == "cuda" else "gloo") if backend == "auto" else backend
    dist.init_process_group(kind, timeout=timedelta(seconds=timeout))
    # The group's destructor waits for its threads while it holds Python's lock, for which one of them, letting go of
    # the last collective's tensor, may be waiting: torch then hangs for ever. So it is shut down, and never destructed.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(dist.group.WORLD))
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), int(where["LOCAL_RANK"]), chosen)
    finally:
        dist.destroy_process_group()
