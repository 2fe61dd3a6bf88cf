"""The benchmarks run, and count right."""

import json
import subprocess
import sys
from pathlib import Path

import dblr_fast

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def run(*arguments):
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_operations_of_one_frame(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import common

    assert round(common.operations(dblr_fast.DBLRNet(), 720, 1280) / 1e12, 3) == 3.455


def test_throughput(tmp_path):
    out = run(BENCHMARKS / "throughput.py", "--sizes", "48x32", "2x16x16", "--repeats", "1", "--json", tmp_path / "r.json")
    assert "eager torch, folded" in out
    result = json.loads((tmp_path / "r.json").read_text())
    assert {"device", "torch", "commit", "threads", "rows"} <= result.keys()
    for row in result["rows"]:
        assert row["median_s"] > 0 and row["tflops"] > 0 and row["max_difference"] < 1e-4
    assert {row["size"] for row in result["rows"]} == {"48x32", "2x16x16"}


def test_memory(tmp_path):
    run(BENCHMARKS / "memory.py", "64x48", "--json", tmp_path / "m.json")
    row, = json.loads((tmp_path / "m.json").read_text())["rows"]
    assert row["peak_mib"] >= row["before_mib"] > 0


def test_train_step(tmp_path):
    run(BENCHMARKS / "train_step.py", "--sizes", "1x12x12", "--repeats", "1", "--json", tmp_path / "t.json")
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert {row["candidate"] for row in rows} == {"eager torch", "ours"}
    assert all(row["forward_s"] > 0 and row["backward_s"] > 0 for row in rows)
