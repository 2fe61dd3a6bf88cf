"""The benchmarks run, count right, and their peers compute the same network."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import dblr_fast
import python_ref
from dblr_fast.engine import fold

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
RESULTS = BENCHMARKS / "results"
LIBRARIES = {"ONNX Runtime": ("onnx", "onnxruntime"), "OpenVINO": ("onnx", "openvino"), "ncnn": ("ncnn",)}
OPTIONAL = ("onnx", "onnxruntime", "openvino", "ncnn", "matplotlib")


def run(script, *arguments, **environment):
    """Its output; dynamo is off unless asked for, since compiling takes longer than all else here."""
    done = subprocess.run([sys.executable, BENCHMARKS / script, *map(str, arguments)], capture_output=True, text=True,
                          env={**os.environ, "TORCHDYNAMO_DISABLE": "1", **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def common(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import common

    return common


@pytest.fixture
def without_peers(tmp_path):
    """An environment in which no optional library can be imported, installed or not."""
    folder = tmp_path / "none"
    folder.mkdir()
    for name in OPTIONAL:
        (folder / f"{name}.py").write_text(f"raise ImportError(\"No module named '{name}'\")\n")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


def rows_of(path):
    return json.loads(path.read_text())["rows"]


def test_operations_of_one_frame(common):
    assert round(common.operations(dblr_fast.DBLRNet(), 720, 1280) / 1e12, 3) == 3.455


def test_kernels_of_frames_in_a_row(common):
    import layers

    launches = [(10 * frame + i, name, seconds) for frame, times in enumerate([(3, 1), (1, 2), (2, 9)])
                for i, (name, seconds) in enumerate(zip("ab", times))]
    assert layers.frame_by_frame(launches[::-1], 3) == [("a", 2), ("b", 2)]
    for other in (launches[:-1], [*launches[:-1], (21, "a", 1)]):
        with pytest.raises(RuntimeError, match="the 3 frames launched different kernels"):
            layers.frame_by_frame(other, 3)


@pytest.mark.parametrize("options", [
    dict(), dict(frames=3, tail_skip=False), dict(frames=7), dict(variant="multi"), dict(variant="single", frames=1),
], ids=str)
def test_graph_of_the_peers_is_the_network(common, options):
    from peers.reference import Crop, restored

    model = common.random_network(blocks=2, width=8, **options)
    reference = python_ref.DBLRNet(blocks=2, width=8, **options).eval()
    reference.load_state_dict(model.state_dict())
    frames = torch.rand(2, model.frames, 27, 41)
    with torch.no_grad():
        wanted = reference.double()(frames.double())
    folded = fold(model)  # its weights are rounded to float32: hence the tolerance
    assert common.relative(restored(folded, frames), wanted) < 1e-6
    crop = Crop(folded, frames, (5, 6))
    assert crop.error(wanted) < 1e-6 < 1e-2 < crop.error(wanted.flip(3))
    assert crop.wanted.shape == (1, 1, 5, 6)


def test_throughput_with_peers(tmp_path):
    out = run("throughput.py", "--peers", "--precision", "exact", "bf16", "--sizes", "37x29", "2x16x24", "--blocks", 1,
              "--repeats", 1, "--no-memory", "--json", tmp_path / "r.json")
    result = json.loads((tmp_path / "r.json").read_text())
    assert {"device", "torch", "commit", "threads", "peers", "rows"} <= result.keys()
    for size in ("37x29", "2x16x24"):
        exact = {row["candidate"]: row for row in result["rows"] if (row["size"], row["precision"]) == (size, "exact")}
        wanted = {"eager torch, folded", "torch.compile"}
        if dblr_fast.backends()["cpu"] is None:
            wanted.add("engine, cpu")
            assert set(exact["engine, cpu"]["faster_than"]) >= {"eager torch, folded, exact", "torch.compile, exact"}
        for label, needed in LIBRARIES.items():
            if all(find_spec(name) for name in needed):
                wanted.add(label)
            else:
                print(f"not tested here, not installed: {label}")
                assert f"{label}, exact is left out: No module named" in out
        assert wanted <= exact.keys(), out
    for row in result["rows"]:
        assert row["median_s"] > 0 and row["tflops"] > 0 and 0 < row["of_floor"] < 100, row
        assert row["error"] < (5e-6 if row["precision"] == "exact" else 3e-2), row
    for row in result["rows"]:  # bf16 that is float32 in truth would be a row under a wrong name
        assert row["precision"] != "bf16" or row["error"] > 1e-4, row


def test_throughput_without_peers_limited_to_avx2_with_memory(tmp_path, without_peers):
    out = run("throughput.py", "--avx2", "--peers", "onnxruntime", "openvino", "ncnn", "--sizes", "24x16",
              "--blocks", 1, "--repeats", 1, "--json", tmp_path / "r.json", **without_peers)
    for label in LIBRARIES:
        assert f"{label}, exact is left out: No module named" in out or f"{label} is left out: nothing limits" in out
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["limited_to"] == "avx2" and result.get("isa") in (None, "avx2", "portable")
    assert {row["candidate"] for row in result["rows"]} <= {"eager torch, folded", "engine, cpu"}
    for row in result["rows"]:
        assert row["peak_mib"] >= row["before_mib"] > 0 and row["net_mib"] < 500, row


def test_a_peer_that_fails_costs_its_row_alone(common, monkeypatch, capsys):
    import candidates
    import peers
    from peers.reference import Crop

    model, frames = common.random_network(blocks=1, width=8), torch.rand(1, 5, 9, 8)
    crop = Crop(fold(model), frames, (9, 8))

    def build(name, *_):
        if name == "ncnn":
            raise peers.Missing("a reason")
        if name == "openvino":
            raise RuntimeError("broken\nin detail")
        return (lambda x: x[:, 2:3] * float("nan")) if name == "compile" else (lambda x: x[:, 2:3])

    monkeypatch.setattr(peers, "build", build)
    found = candidates.chosen(["exact"], [], ["ncnn", "openvino", "compile", "onnxruntime"], torch.device("cpu"))
    with torch.no_grad():
        runs, first = candidates.built(found, model, frames, crop)
    assert [c.kind for c in runs] == [c.kind for c in first] == ["eager"]
    said = capsys.readouterr().out
    for words in ("ncnn, exact is left out: a reason\n", "OpenVINO, exact is left out, it failed: broken\n",
                  "torch.compile, exact is left out, it computes something else: its relative error is nan",
                  "ONNX Runtime, exact is left out, it computes something else"):
        assert words in said


def test_who_is_limited_to_avx2(common, monkeypatch, capsys):
    import candidates
    import processor

    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    for flags, wanted in (({"avx2"}, {"torch", "compile", "openvino", "ncnn"}),
                          ({"avx2", "avx512f", "avx512_bf16"}, {"torch", "compile", "openvino"})):
        monkeypatch.setattr(processor, "flags", lambda flags=flags: flags)
        found = candidates.chosen(["exact"], [], ["compile", "openvino", "ncnn"], torch.device("cpu"))
        assert {c.name for c in found} == wanted
        assert processor.lacks_products("bf16") == "AVX2 has no bf16 products"
    assert "ncnn is left out: nothing limits it to AVX2" in capsys.readouterr().out
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert processor.lacks_products("bf16") is None and "no half products" in processor.lacks_products("half")


def test_memory_of_all_is_compared_with_what_is_free(common):
    import net_memory

    assert net_memory.shortage([{"net_mib": 1}, {}]) is None
    if net_memory.MACHINE.exists():
        assert "name fewer with --peers" in net_memory.shortage([{"net_mib": 1e8}, {"net_mib": 1e8}])


def test_memory(tmp_path):
    run("memory.py", "640x40", "--blocks", 1, "--precision", "fast", "--repeats", 1, "--processes", 1,
        "--json", tmp_path / "m.json")
    whole, least = rows_of(tmp_path / "m.json")
    assert whole["workspace_mib"] > least["workspace_mib"] > 0 and whole["ratio"] == 1 and least["ratio"] > 0
    for row in (whole, least):
        assert row["peak_mib"] >= row["net_mib"] > row["workspace_mib"] and row["median_s"] > 0


def test_sizes(tmp_path):
    run("sizes.py", "16x12", "2x32x24", "--blocks", 1, "--repeats", 2, "--json", tmp_path / "s.json")
    small, large = rows_of(tmp_path / "s.json")
    assert (small["size"], small["over"]) == ("16x12", 1) and large["over"] > 0 and large["median_ns"] > 0
    low, high = large["over_quartiles"]
    assert low <= large["over"] <= high


def test_train_step(tmp_path):
    out = run("train_step.py", "--autocast", "none", "bf16", "--sizes", "2x16x12", "--blocks", 1, "--repeats", 1,
              "--processes", 1, "--json", tmp_path / "t.json")
    rows = rows_of(tmp_path / "t.json")
    names = {"eager torch", "ours"}
    assert {row["candidate"] for row in rows if row["precision"] == "float32"} == names
    bf16 = {row["candidate"] for row in rows if row["precision"] == "bf16"}
    assert bf16 == names or all(f"{name}, bf16 is left out: " in out for name in names)
    for row in rows:
        assert row["forward_s"] > 0 and row["backward_s"] > 0 and 0 <= row["net_mib"] < 500, row
        assert row["error"] < (1e-5 if row["precision"] == "float32" else 1e-1), row
        assert row["ratio_step"] > 0 and (row["candidate"] != "eager torch" or row["ratio_step"] == 1), row


def test_scaling(tmp_path):
    run("scaling.py", "--sizes", "2x16x12", "--blocks", 1, "--repeats", 2, "--threads", 2,
        "--json", tmp_path / "s.json")
    rows = rows_of(tmp_path / "s.json")
    wanted = {"products", "copy", "training step"} | ({"engine"} if dblr_fast.backends()["cpu"] is None else set())
    assert {row["candidate"] for row in rows} == wanted
    for row in rows:
        assert row["threads"] == 2 and row["one_s"] > 0 and row["several_s"] > 0, row
        low, high = row["gain_quartiles"]
        assert low <= row["gain"] <= high, row


def test_training_steps_start_from_the_same_network(common):
    import steps

    cpu, frames = torch.device("cpu"), torch.rand(2, 5, 12, 10)
    batch = frames, frames[:, 2:3]
    wanted = steps.reference(1, *batch, cpu)
    with torch.compiler.set_stance("force_eager"):  # compiling takes longer than all else here
        for name in (steps.EAGER, steps.COMPILED, steps.OURS):
            made = steps.step(name, "none", 1, cpu)
            pictures, gradients = made.results(*batch)
            assert common.relative(pictures, wanted[0]) < 1e-5, name
            assert common.relative(gradients, wanted[1]) < 1e-2, name  # a ReLU near zero may fall to either side
            seconds = made(*batch)
            assert seconds["step"] >= seconds["forward"] + seconds["backward"] > 0
            changed = made.results(*batch)[0]  # the step has trained
            assert common.relative(changed, pictures) > 1e-4, name


def test_the_training_loops_step_is_measured_too(common):
    import steps

    cpu, frames = torch.device("cpu"), torch.rand(2, 5, 16, 16)
    batch = frames, frames[:, 2:3]
    for precision in ("none", "bf16"):
        made = steps.LoopStep(precision, 1, cpu, False, batch)
        start = made.model.conv1.weight.clone()
        assert made(*batch)["step"] > 0 and made.number == 5 and made.trained
        assert not torch.equal(made.model.conv1.weight, start)


def chart(*arguments, **environment):
    return subprocess.run([sys.executable, BENCHMARKS / "chart.py", *map(str, arguments)], capture_output=True,
                          text=True, env={**os.environ, **environment})


def test_chart(tmp_path):
    """Of whatever results are committed: the same bytes twice; and the README's is small."""
    assert (RESULTS / "chart.png").stat().st_size < 60_000
    first = {path: json.loads(path.read_text()).get("rows", [{}])[0] for path in sorted(RESULTS.glob("*.json"))}
    files = {kind: [path for path, row in first.items() if key in row]
             for kind, key in (("inference", "frames_per_s"), ("training", "step_s"))}
    assert files["inference"] and files["training"]
    if not find_spec("matplotlib"):
        print("not tested here, not installed: matplotlib")
        return
    outs = [tmp_path / "a.png", tmp_path / "b.png"]
    for out in outs:
        done = chart(*files["inference"], "--training", *files["training"], "--out", out)
        assert done.returncode == 0, done.stderr
    first, second = (out.read_bytes() for out in outs)
    assert first == second and first.startswith(b"\x89PNG")


def test_chart_refuses(tmp_path, without_peers):
    good = tmp_path / "good.json"
    good.write_text(json.dumps(dict(device="d", threads=1, torch="t", commit="c", date="2026", rows=[
        dict(size="1x1", candidate="ours", step_s=1.0)])))
    for arguments, words in (((tmp_path / "none.json",), "none.json cannot be read"),
                             ((RESULTS / "README.md",), "README.md is no result of"),
                             ((good, "--out", tmp_path / "c.png"), "pip install '.[bench]'")):
        done = chart(*arguments, **without_peers)
        assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
