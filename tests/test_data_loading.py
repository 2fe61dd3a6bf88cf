"""Batches from worker processes, and samples as pictures."""

import json
import os
import pickle
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from data_cases import settings, write_pictures

from dblr_fast.data import batches, dump, dump_batch, training_set
from dblr_fast.errors import Refusal

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than the machine has cores


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("footage")
    for n, name in enumerate("abc"):
        write_pictures(root / name, seed=n)
    return training_set(settings(root, blur_flow_share=0.5, cache=root / ".cache"), 3, 0)


def numbers(size=2, start=0, step=None):
    """Batches of numbers without end."""
    return ([n * (step or size) + start + i for i in range(size)] for n in count())


def take(feed, number):
    out = [next(feed) for _ in range(number)]
    feed.close()
    return out


class Telling(torch.utils.data.Dataset):
    """Samples that tell what process made them, and how it is set up."""

    def __getitem__(self, number):
        facts = [os.getpid(), torch.get_num_threads(), cv2.getNumThreads(), number,
                 signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == signal.SIG_IGN]
        return {"blurred": torch.tensor(facts), "sharp": torch.zeros(1)}


class Failing(Telling):
    def __getitem__(self, number):
        if number == 5:
            raise Refusal("a.png is cut off before its end; fetch it again")
        return super().__getitem__(number)


@pytest.mark.parametrize("workers, context", [(0, None), (1, "fork"), (3, "fork"), (1, "spawn")])
def test_batches_are_the_samples(dataset, workers, context):
    """In the order of the numbers, bit by bit what the set itself gives, however many processes make them."""
    for n, batch in enumerate(take(batches(dataset, numbers(3), workers, 2, context=context), 4)):
        wanted = [dataset[3 * n + i] for i in range(3)]
        assert batch["numbers"].tolist() == [3 * n, 3 * n + 1, 3 * n + 2] and batch["numbers"].dtype == torch.int64
        for key in ("blurred", "sharp"):
            assert torch.equal(batch[key], torch.stack([sample[key] for sample in wanted]))


def test_two_ranks_share_the_samples_of_one(dataset):
    """Ranks that ask for their parts of the numbers together get the very samples of one process."""
    whole = take(batches(dataset, numbers(4), 0), 2)
    ranks = [take(batches(dataset, numbers(2, 2 * rank, 4), rank, 2), 2) for rank in (0, 1)]
    for n, batch in enumerate(whole):
        assert torch.equal(batch["blurred"], torch.cat([part[n]["blurred"] for part in ranks]))


def test_no_workers_no_processes():
    batch, = take(batches(Telling(), numbers(), 0), 1)
    assert batch["blurred"][:, 0].tolist() == [os.getpid()] * 2


def test_workers():
    """One thread each; they take no notice of signals meant for the training process, and end when the feed does."""
    before = cv2.getNumThreads(), torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    feed = batches(Telling(), numbers(), 2, 1, context="fork")
    made = [next(feed)["blurred"] for _ in range(4)]
    workers = {int(pid) for pid in torch.cat(made)[:, 0]}
    assert len(workers) == 2 and os.getpid() not in workers
    assert all(row[1:3] == [1, 1] and row[4] == 1 for row in torch.cat(made).tolist())
    for pid in workers:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    assert {int(pid) for _ in range(6) for pid in next(feed)["blurred"][:, 0]} == workers
    feed.close()
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert before == (cv2.getNumThreads(), torch.get_num_threads(), signal.getsignal(signal.SIGINT))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_refusal_comes_through(workers):
    """The sentence as it is, from whichever process, after the batches before it."""
    feed = batches(Failing(), numbers(), workers)
    assert [next(feed)["blurred"][0, 3] for _ in range(2)] == [0, 2]
    with pytest.raises(Refusal) as caught:
        next(feed)
    assert str(caught.value) == "a.png is cut off before its end; fetch it again"


class Broken(Telling):
    def __getitem__(self, number):
        return super().__getitem__(number if number != 5 else 1 / 0)


def test_workers_end_with_an_error():
    """Although its traceback holds on to everything, and they take no notice of being terminated."""
    feed = batches(Broken(), numbers(), 2, context="fork")
    workers = [int(next(feed)["blurred"][0, 0]) for _ in range(2)]
    with pytest.raises(ZeroDivisionError) as caught:
        next(feed)
    assert caught.traceback
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_another_process(dataset):
    """It makes the same samples from the configuration alone; a feed that is left open does not keep it from ending."""
    code = ("import pickle, sys; from dblr_fast.data import batches, training_set\n"
            "feed = batches(training_set(pickle.load(sys.stdin.buffer), 3, 0), ([n] for n in range(10**9)), 1)\n"
            "print(next(feed)['blurred'].numpy().tobytes().hex(), flush=True)\nraise SystemExit(3)\n")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], input=pickle.dumps(dataset.config), check=False,
                          capture_output=True, timeout=120)
    assert done.returncode == 3, done.stderr
    assert bytes.fromhex(done.stdout.decode()) == dataset[0]["blurred"].numpy().tobytes()


def test_damage_met_by_a_worker_is_named(tmp_path):
    path = write_pictures(tmp_path / "clip", count=5)
    dataset = training_set(settings(path, cache="off", held_out=0), 3, 0)
    (path / "00002.png").write_bytes(b"no picture")
    with pytest.raises(Refusal, match="^.*00002.png is not a picture that can be read; take it out, or fetch it "
                                      "again$"):
        take(batches(dataset, numbers(), 1), 20)


def test_numbers_that_end():
    assert [b["numbers"].tolist() for b in batches(Telling(), [[3, 1], [4]], 1)] == [[3, 1], [4]]


def test_pictures_of_samples(dataset, tmp_path):
    files = dump(dataset, range(11), tmp_path / "new" / "folder", rows=4)
    assert [f.name for f in files] == [f"samples_{a:06d}_{b:06d}.png" for a, b in ((0, 3), (4, 7), (8, 10))]
    sheets = [cv2.imread(str(f), cv2.IMREAD_UNCHANGED) for f in files]
    assert [s.shape for s in sheets] == [(4 * 26, 4 * 26), (4 * 26, 4 * 26), (3 * 26, 4 * 26)]
    sample = dataset[5]
    row = sheets[1][26:52]
    for n, frame in enumerate([*sample["blurred"], *sample["sharp"]]):
        assert np.array_equal(row[1:25, 26 * n + 1:26 * n + 25], (255 * frame).round().byte().numpy())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Refusal, match="the folder .*file for pictures of samples cannot be made"):
        dump(dataset, [0], tmp_path / "file")


def test_a_batch_as_a_picture(dataset, tmp_path):
    batch, = take(batches(dataset, numbers(3), 0), 1)
    path = dump_batch(batch, tmp_path / "batch.png")
    assert path == tmp_path / "batch.png" and cv2.imread(str(path)).shape == (3 * 26, 4 * 26, 3)
    wild = {key: value * float("nan") for key, value in batch.items()}
    assert cv2.imread(str(dump_batch(wild, path)))[1, 1].tolist() == [0, 0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["batch.png"]


def test_the_benchmark_runs(tmp_path, monkeypatch, capsys):
    """Small: all parts add up, rates are there for each number of workers, and the machine and versions are named."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    import data

    threads, cutting = torch.get_num_threads(), data.sys.modules["dblr_fast.data.windows"].Reduced.cut
    monkeypatch.setattr(sys, "argv", ["data.py", "--samples", "4", "--crop", "32", "--workers", "0", "1", "--json",
                                      str(tmp_path / "result.json")])
    try:
        data.main()
    finally:
        torch.set_num_threads(threads)
    result = json.loads((tmp_path / "result.json").read_text())
    assert {"device", "torch", "commit", "date"} <= result.keys() and result["crop"] == 32
    decoding, still, moving, *rates = result["rows"]
    assert decoding["frames_per_s"] > 0 and [row["workers"] for row in rates] == [0, 1]
    assert all(row["samples_per_s"] > 0 for row in rates)
    for row in (still, moving):
        assert sum(row["parts_ms"].values()) == pytest.approx(row["ms_per_sample"])
    assert still["parts_ms"]["optical flow"] == 0 < moving["parts_ms"]["optical flow"]
    assert "samples/s" in capsys.readouterr().out
    assert data.sys.modules["dblr_fast.data.windows"].Reduced.cut is cutting
