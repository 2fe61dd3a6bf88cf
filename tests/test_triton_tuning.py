"""Which configuration a Triton kernel takes: measured once, kept on disk, fixed where nothing can be measured."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install dblr_fast[test]")

from dblr_fast.triton_kernels import tuning  # noqa: E402

OPTIONS = [dict(BLOCK_P=p, num_warps=4) for p in (256, 128, 64)]
ARGUMENTS = dict(x=torch.zeros(4), pixels=1000, CIN=64)


class Kernel:
    """Stands for a compiled kernel: remembers what it was launched with."""

    __name__ = "conv3x3"

    def __init__(self):
        self.launched = []

    def __getitem__(self, grid):
        return lambda **arguments: self.launched.append((grid, arguments))


@pytest.fixture
def kernel(monkeypatch, tmp_path):
    """A kernel whose second configuration is the fastest, on a machine with an empty cache."""
    monkeypatch.setenv("DBLR_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DBLR_FAST_AUTOTUNE", raising=False)
    monkeypatch.setattr(tuning, "INTERPRETED", False)
    monkeypatch.setattr(tuning, "_chosen", {})
    monkeypatch.setattr(tuning, "_started", set())
    monkeypatch.setattr(tuning, "ROUNDS", 1)
    monkeypatch.setattr(tuning, "WARM_UP", 0.0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    timed = []
    monkeypatch.setattr(tuning, "_seconds",
                        lambda kernel, grid, arguments, o: timed.append(o) or abs(o["BLOCK_P"] - 128))
    kernel = Kernel()
    kernel.timed = timed
    return kernel


def launched(kernel, **arguments):
    tuning.launch(kernel, lambda o: o["BLOCK_P"], ARGUMENTS | arguments, OPTIONS)
    return kernel.launched[-1]


def forget(monkeypatch):
    """As a new process would start."""
    monkeypatch.setattr(tuning, "_chosen", {})


def test_the_fastest_is_taken_and_measured_once(kernel):
    grid, arguments = launched(kernel)
    assert grid == (128,) and arguments["BLOCK_P"] == 128 and arguments["num_warps"] == 4
    launched(kernel, pixels=1023)
    assert kernel.timed == OPTIONS, "sizes up to the next power of two share a choice"
    launched(kernel, pixels=1024)
    launched(kernel, CIN=16)
    launched(kernel, x=torch.zeros(4, dtype=torch.float16))
    assert len(kernel.timed) == 4 * len(OPTIONS)


def test_configurations_are_measured_in_turns_by_their_fastest_runs(kernel, monkeypatch):
    seconds = iter([9, 8, 7, 2, 8, 7, 9, 1, 7])  # the device speeds up, and is held up once
    monkeypatch.setattr(tuning, "ROUNDS", 3)
    monkeypatch.setattr(tuning, "_seconds", lambda kernel, grid, arguments, o: kernel.timed.append(o) or next(seconds))
    assert launched(kernel)[0] == (128,)
    assert kernel.timed == OPTIONS * 3


def test_a_configuration_that_the_device_refuses_is_left_out(kernel, monkeypatch):
    def refusing(kernel, grid, arguments, option, start=tuning._start):
        if option["BLOCK_P"] == 128:
            raise tuning.triton.runtime.errors.OutOfResources(2, 1, "shared memory")
        start(kernel, grid, arguments, option)
    monkeypatch.setattr(tuning, "_start", refusing)
    assert launched(kernel)[0] == (64,)


def test_choices_outlive_the_process(kernel, monkeypatch):
    launched(kernel)
    file = tuning.cache_file(torch.device("cpu"))
    assert list(file.parent.iterdir()) == [file], "no half-written file stays behind"
    assert list(json.loads(file.read_text()).values()) == [OPTIONS[1]]
    forget(monkeypatch)
    assert launched(kernel)[0] == (128,)
    assert len(kernel.timed) == len(OPTIONS)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": 1}', "\x00\xff", '{"KEY": {"BLOCK_P": 7, "num_warps": 4}}'])
def test_a_spoiled_file_is_ignored_and_replaced(kernel, monkeypatch, content):
    launched(kernel)
    file = tuning.cache_file(torch.device("cpu"))
    key, = json.loads(file.read_text())
    file.write_text(content.replace("KEY", key))
    forget(monkeypatch)
    assert launched(kernel)[0] == (128,)
    assert json.loads(file.read_text())[key] == OPTIONS[1]


def test_the_file_is_the_devices_tritons_and_the_sources(kernel, monkeypatch):
    device = torch.device("cpu")
    names = {tuning.cache_file(device).name}
    monkeypatch.setattr(tuning.triton, "__version__", "0.0")
    names.add(tuning.cache_file(device).name)
    monkeypatch.setattr(tuning, "_source_hash", lambda: "0")
    names.add(tuning.cache_file(device).name)
    monkeypatch.setattr(tuning, "device_facts", lambda device: tuning.Device("GPU / 7", 1, True, True, 1))
    names.add(tuning.cache_file(device).name)
    assert len(names) == 4 and not any("/" in name for name in names)


def test_a_folder_that_cannot_be_written_is_left_alone(kernel, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DBLR_FAST_CACHE", str(tmp_path / "file" / "cache"))
    assert launched(kernel)[0] == (128,)


def test_off_takes_the_first(kernel, monkeypatch):
    monkeypatch.setenv("DBLR_FAST_AUTOTUNE", "off")
    assert launched(kernel)[0] == (256,) and not kernel.timed


@pytest.mark.parametrize("module,name", [(torch.cuda, "is_current_stream_capturing"), (torch.compiler, "is_compiling")])
def test_nothing_is_measured_while_a_graph_is_recorded(kernel, monkeypatch, module, name):
    with monkeypatch.context() as recording:
        recording.setattr(module, name, lambda: True)
        assert launched(kernel)[0] == (256,) and not kernel.timed
    launched(kernel)
    with monkeypatch.context() as recording:
        recording.setattr(module, name, lambda: True)
        assert launched(kernel)[0] == (128,), "what was measured before holds"


def test_threads_measure_once(kernel):
    threads = [threading.Thread(target=launched, args=(kernel,)) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert kernel.timed == OPTIONS


def test_slow_compiling_is_said_once(kernel, monkeypatch, capfd):
    monkeypatch.setattr(tuning, "SAID_AFTER", 0.05)
    monkeypatch.setattr(tuning, "_seconds_compiling", 0.0)
    compiling = threading.Event()

    class Slow(Kernel):
        def __getitem__(self, grid):
            return lambda **_: compiling.wait(0.2)

    for pixels in (10, 100):
        tuning.launch(Slow(), 1, ARGUMENTS | dict(pixels=pixels))
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and said.startswith("dblr_fast: compiling Triton kernels")
    before = time.perf_counter()
    tuning.launch(kernel, 1, ARGUMENTS)
    assert time.perf_counter() - before < 5 and not capfd.readouterr().err


@pytest.mark.parametrize("shared,hopper", [(227 << 10, True), (163 << 10, False), (99 << 10, False), (64 << 10, False)])
@pytest.mark.parametrize("dtype,tf32", [(torch.float16, False), (torch.float32, False), (torch.float32, True)])
@pytest.mark.parametrize("channels", (1, 16, 48, 64, 256))
def test_every_device_has_a_configuration(kernel, monkeypatch, shared, hopper, dtype, tf32, channels):
    monkeypatch.setattr(tuning, "device_facts", lambda device: tuning.Device("gpu", shared, hopper, hopper, 132))
    device = torch.device("cpu")
    for sums in (False, True):
        options = tuning.convolution(dtype, channels, tf32, sums, False, 640, 640, device)
        assert not options[0]["BOXES"] and not options[0]["WALK"]  # DBLR_FAST_AUTOTUNE=off takes it
        walks = hopper and dtype == torch.float16 and not sums and channels in (48, 64)
        assert [o["BOXES"] for o in options if o["WALK"]] == [False, True] * walks
        assert any(o["BOXES"] for o in options) == (hopper and dtype == torch.float16 and not sums)
        assert options and all(o["num_stages"] * (o["BLOCK_M"] + o["BLOCK_P"]) * 128 <= shared for o in options)
        if sums:
            assert len({(o["BLOCK_M"], o["BLOCK_P"], o["num_warps"]) for o in options}) == 1
    assert len({o["BLOCK_P"] for o in tuning.weight_gradient(dtype, channels, channels, tf32, device)}) == 1


@pytest.mark.parametrize("width, runs", [
    (0, ()), (5, ()), (106, ()), (107, (128,)), (128, (128,)), (213, ()), (214, (128, 256)), (640, (128, 256)),
    (1281, (128, 256))])
def test_descriptors_are_tried_where_their_runs_fill_a_row(monkeypatch, width, runs):
    monkeypatch.setattr(tuning, "device_facts", lambda device: tuning.Device("gpu", 227 << 10, True, True, 132))
    options = tuning.convolution(torch.float16, 64, False, False, False, width, width, torch.device("cpu"))
    assert {o["BLOCK_P"] for o in options if o["BOXES"]} == set(runs)
    assert any(o["WALK"] for o in options) == (128 in runs)
    for taps in (False, True):  # all sum in one order
        options = tuning.convolution(torch.float16, 256, False, False, taps, width, width, torch.device("cpu"))
        assert not taps or len({(o["BLOCK_M"], o["BLOCK_P"], o["num_warps"]) for o in options}) == 1


@pytest.mark.parametrize("runs, height, rows", [
    (10, 720, 56),  # 1280x720 in runs of 128 pixels: 130 blocks for 132 multiprocessors, all at once
    (5, 360, 14),  # 640x360: 130
    (1, 128, 1), (132, 720, 720), (1000, 5, 5), (1, 1, 1)])
def test_rows_to_walk(runs, height, rows):
    assert tuning.rows_to_walk(runs, height, 132) == rows


def test_what_depends_on_the_configuration_is_made_for_it(monkeypatch):
    given = {}

    class Kernel:
        __name__ = "kernel"

        def __getitem__(self, grid):
            return lambda **arguments: given.update(arguments, grid=grid)

    arguments = ARGUMENTS | dict(runs=lambda o: o["BLOCK_P"] * 2)
    tuning.launch(Kernel(), lambda o: o["BLOCK_P"], arguments, [dict(BLOCK_P=3)])
    assert given["runs"] == 6 and given["grid"] == (3,) and given["BLOCK_P"] == 3


def test_why_it_is_off_here():
    from dblr_fast import backends

    assert "triton" in backends.NAMES
    reason = backends.get("triton").unavailable()
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here: nothing is off")
    assert reason == "torch finds no GPU to run Triton's kernels on; take the cpu or the torch backend"
    assert "take tensors on a GPU, these are on cpu" in backends.get("triton").unavailable(torch.device("cpu"))
    with pytest.raises(RuntimeError, match="backend 'triton' cannot run: torch finds no GPU"):
        with backends.use_backend("triton"):
            pass


def test_without_triton_the_reason_is_said_and_nothing_else_breaks():
    code = ("import sys; sys.modules['triton'] = None\n"
            "import dblr_fast, torch; print(dblr_fast.backends()['triton'])\n"
            "print(dblr_fast.backends.select(torch.device('cpu')).name)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "Triton cannot be imported" in done.stdout and "pip install triton" in done.stdout and "cpu\n" in done.stdout


def test_importing_the_package_imports_no_triton():
    code = "import dblr_fast, sys; assert not any(m.startswith('dblr_fast.triton') for m in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0


@pytest.mark.parametrize("op", ["stem", "conv_bn_act", "residual_block", "reconstruct"])
def test_ops_run_on_the_device_of_their_input(op):
    """What one GPU cannot show: each op goes through the guard, both ways."""
    from dblr_fast.backends.triton_backend import TritonBackend, _on_device
    guard = _on_device(lambda self, x: None).__code__
    assert all(getattr(TritonBackend, name).__code__ is guard for name in (op, f"{op}_backward"))
