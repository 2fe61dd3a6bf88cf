"""Several processes: who they are, which samples they take, and that together they train as one would."""

import copy
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_close_as_eager
from training_cases import footage, losses, small, table  # noqa: F401  (a fixture)

import dblr_fast
from dblr_fast.errors import Refusal
from dblr_fast.training import ranks, train
from dblr_fast.training import state as states

SLURM = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123456",
         "SLURM_STEP_NODELIST": "gpu[07-08],gpu11"}


def test_torchruns_environment():
    given = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert ranks.placement(given) == given
    assert ranks.placement({}) is None and ranks.placement(given | {"WORLD_SIZE": "1", "RANK": "0"}) is None
    with pytest.raises(Refusal, match="MASTER_ADDR is not known"):
        ranks.placement({"RANK": "0", "WORLD_SIZE": "2"})


def test_slurms_environment():
    assert ranks.placement(SLURM) == {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu07",
                                      "MASTER_PORT": str(15000 + 123456 % 20000)}
    assert ranks.placement(SLURM | {"MASTER_PORT": "29", "MASTER_ADDR": "b"})["MASTER_PORT"] == "29"
    # a batch script that runs Python itself, not through srun
    assert ranks.placement({"SLURM_NTASKS": "16", "SLURM_PROCID": "0"}) is None
    with pytest.raises(Refusal, match="RANK is not known"):
        ranks.placement({"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "a"})


@pytest.mark.parametrize("nodes, first", [("gpu07", "gpu07"), ("gpu[07-09,12],login", "gpu07"), ("a,b", "a"),
                                          ("n[1,3]", "n1"), ("rack-1-[5-6]-ib,x[1-2]", "rack-1-5-ib")])
def test_first_host(nodes, first):
    assert ranks.first_host(nodes) == first


WORKER = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import dblr_fast.data
from training_cases import Footage, small
from dblr_fast.errors import Refusal
from dblr_fast.training import train
from test_train_ranks import batch_norm_cases, run_batch_norm
from dblr_fast.training.ranks import joined
from dblr_fast.training.sync_norm import synchronised

ports = json.loads(sys.argv[4])
os.environ["MASTER_PORT"] = str(ports.pop())
with joined("cpu") as ranks:
    torch.save([run_batch_norm(synchronised(bn), x[ranks.rank], dy[ranks.rank]) for bn, x, dy in batch_norm_cases()],
               f"{sys.argv[2]}/batch_norm{ranks.rank}")
footage = Footage()
for name in footage.names:
    setattr(dblr_fast.data, name, getattr(footage, name))
for job, port in zip(json.loads(sys.argv[3]), ports):
    os.environ["MASTER_PORT"] = str(port)
    footage.asked.clear()
    footage.bad = job.pop("bad", ())
    try:
        train(small(sys.argv[2] + "/" + job.pop("name"), **job))
    except (Refusal, RuntimeError) as error:
        print("REFUSED", error)
    print("ASKED", json.dumps(footage.asked))
"""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def two_processes(folder, jobs):
    """Runs the jobs, one after the other, in two processes that SLURM might have started; their output."""
    ports = json.dumps(free_ports(len(jobs) + 1))
    arguments = [sys.executable, "-c", WORKER, str(Path(__file__).parent), str(folder), json.dumps(jobs), ports]
    slurm = {"SLURM_STEP_NUM_TASKS": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | slurm | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}) for rank in range(2)]
    try:
        out = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], out
    return [said for said, _ in out]


# Adam divides a gradient by its size: one that is zero but for rounding (of a bias before batch norm, say) would move
# its weight by a whole step, with another sign in every order of sums; the larger eps keeps that out. So does the
# paper's start: the identity's frames have flat parts, in which rounding decides which of four equals pooling takes.
PLAIN = {"steps": 5, "validation__every": 0, "checkpoint__every": 100, "distributed__sync_bn": True,
         "optimiser__eps": 1e-4, "model__init": "paper"}
WIDE = {**PLAIN, "loss__alpha": 1e-3, "precision__dtype": "float64"}


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes did: the folder of their runs and what each printed."""
    folder = tmp_path_factory.mktemp("ranks")
    plain = {"steps": 4, "checkpoint__every": 2}
    said = two_processes(folder, [
        {"name": "float64", **WIDE}, {"name": "float32", **PLAIN}, {"name": "plain", **plain},
        {"name": "plain", **plain, "steps": 6, "resume": True}, {"name": "whole", **plain, "steps": 6},
        {"name": "nan", "steps": 2, "bad": [2], "validation__every": 0},
        {"name": "plain", **plain, "resume": True, "seed": 9}])
    return folder, said


def curve(folder, name="loss"):
    return torch.tensor([row[name] for row in table(folder)], dtype=torch.float64)


def test_two_processes_train_as_one_with_the_double_batch(footage, tmp_path, together):  # noqa: F811
    """The same losses, to rounding, with batch norm synchronised: of G and of D, with clipping and Adam. Rounding is
    what sums in other orders differ by."""
    names = ("loss", "content", "adversarial", "discriminator", "gradient", "d_gradient")
    train(small(tmp_path / "reference", batch=4, **WIDE))
    reference = {name: curve(tmp_path / "reference", name) for name in names}
    rounding = dict.fromkeys(names, 0.0)
    for order in ((3, 2, 1, 0), (1, 2, 3, 0), (0, 2, 1, 3)):
        footage.order = order
        folder = tmp_path / str(order)
        train(small(folder, batch=4, **WIDE))
        rounding = {name: max(rounding[name], (curve(folder, name) - reference[name]).abs().max()) for name in names}
    for name in names:
        ours = curve(together[0] / "float64", name)
        assert_close_as_eager(name, ours, reference[name] + rounding[name], reference[name])


def test_in_single_precision_too(footage, tmp_path, together):  # noqa: F811
    """Each step's loss by our ops in two processes is as exact as by torch's in one."""
    train(small(tmp_path / "reference", batch=4, precision__dtype="float64", **PLAIN))
    with dblr_fast.use_backend("torch"):
        train(small(tmp_path / "eager", batch=4, **PLAIN))
    ours, eager, reference = (curve(path) for path in (
        together[0] / "float32", tmp_path / "eager", tmp_path / "reference"))
    convolutions = 9  # of width 8 with one block: L1, L2, two a block, two more, and three
    for step in range(len(ours)):
        assert_close_as_eager(f"loss of step {step + 1}", ours[step].float(), eager[step].float(), reference[step],
                              winograd=2 * convolutions * (step + 1))


def test_each_process_takes_its_own_samples(together):
    _, said = together
    asked = [json.loads(text.split("ASKED ")[3].splitlines()[0]) for text in said]  # of the run "plain"
    assert asked[0][:4] == [[0, 1], [4, 5], [8, 9], [12, 13]]
    assert asked[1][:4] == [[2, 3], [6, 7], [10, 11], [14, 15]]
    resumed = [json.loads(text.split("ASKED ")[4].splitlines()[0]) for text in said]
    assert resumed[0][0] == [16, 17] and resumed[1][0] == [18, 19]


def test_together_they_resume_bit_by_bit(together):
    folder, said = together
    assert losses(folder / "plain") == losses(folder / "whole")
    plain, whole = ({row["step"]: row for row in table(folder / name, "validation.csv")}
                    for name in ("plain", "whole"))
    assert [plain[step] for step in (0, 3, 6)] == [whole[step] for step in (0, 3, 6)]
    state = states.load(folder / "plain")
    assert len(state["random"]) == 2 and state["world"] == 2 and state["position"] == 24
    assert not torch.equal(state["random"][0]["torch"], state["random"][1]["torch"])
    assert "going on from step 4 of 6, 4 windows a step, 2 process(es)" in said[0]


def test_the_first_process_alone_speaks(together):
    _, said = together
    assert "step 1/4" in said[0] and "step 1/4" not in said[1]


def test_all_of_them_stop_at_a_nan_and_at_a_refusal(together):
    _, said = together
    for text in said:
        nan, refusal = [line for line in text.splitlines() if line.startswith("REFUSED")]
        assert "step 1 is not finite" in nan and "samples 2, 3: the blurred frames of sample 2" in nan
        assert "was written with seed 3 and the configuration says 9" in refusal


def batch_norm_cases():
    """Batches of two processes, of unequal sizes, with gradients; also far from zero, where sums of squares would
    cancel."""
    generator = torch.Generator().manual_seed(0)
    for dtype, offset in ((torch.float64, 0.0), (torch.float32, 0.0), (torch.float32, 100.0)):
        bn = torch.nn.BatchNorm2d(5).to(dtype)
        torch.nn.init.normal_(bn.weight, generator=generator)
        torch.nn.init.normal_(bn.bias, generator=generator)
        x, dy = ([torch.randn(n, 5, 6, 7, generator=generator, dtype=torch.float64).add(add).to(dtype) for n in (3, 2)]
                 for add in (offset, 0.0))
        yield bn, x, dy


def run_batch_norm(bn, x, dy):
    """{name: values, gradients and statistics} of one batch norm."""
    x = x.clone().requires_grad_()
    y = bn(x)
    y.backward(dy)
    return {"y": y.detach(), "dx": x.grad, "weight": bn.weight.grad, "bias": bn.bias.grad,
            "mean": bn.running_mean, "var": bn.running_var}


@pytest.mark.parametrize("number", range(3))
def test_synchronised_batch_norm(together, number):
    """Forward, backward and running statistics are those of one batch norm over both processes' batches, which torch
    computes in float64."""
    outs = [torch.load(together[0] / f"batch_norm{rank}")[number] for rank in range(2)]
    bn, x, dy = list(batch_norm_cases())[number]
    reference, eager = (run_batch_norm(copy.deepcopy(bn).to(dtype), torch.cat(x).to(dtype), torch.cat(dy).to(dtype))
                        for dtype in (torch.float64, torch.float32))
    mine = {key: torch.cat([out[key] for out in outs]) for key in ("y", "dx")}
    mine |= {key: outs[0][key] + outs[1][key] for key in ("weight", "bias")}
    mine |= {key: outs[0][key] for key in ("mean", "var")}
    # sums whose terms nearly cancel: of x in the mean, of dy and dy * normalised x in the gradients
    scales = {"mean": 0.1 * torch.cat(x).abs().max().item(), "weight": torch.cat(dy).abs().sum().item() / 5,
              "bias": torch.cat(dy).abs().sum().item() / 5}
    for key, value in mine.items():
        assert_close_as_eager(f"{key} of case {number}", value, eager[key], reference[key], scales.get(key))
    assert all(torch.equal(outs[0][key], outs[1][key]) for key in ("mean", "var"))


def test_alone_it_is_batch_norm():
    from dblr_fast.training.sync_norm import synchronised

    model = dblr_fast.DBLRNet(width=4, blocks=1)
    names = list(model.state_dict())
    x = torch.rand(2, 5, 8, 8)
    want = model.train()(x)
    assert list(synchronised(model).state_dict()) == names
    assert not any(half.fusable() for half in model.body())
    assert F.l1_loss(model(x), want) < 1e-6
