"""benchmarks/gpu_check.sh without a GPU: what it calls is there and knows the options it is given."""

import json
import os
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# In place of Python: writes down what it was to run, and does what leaves files behind.
STUB = """#!{python}
import json, pathlib, sys
with open({log!r}, "a") as log:
    log.write(json.dumps([str(pathlib.Path.cwd()), *sys.argv[1:]]) + "\\n")
if "--json" in sys.argv:
    pathlib.Path(sys.argv[sys.argv.index("--json") + 1]).write_text("{{}}")
print("done")
"""
SANITIZER = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do case $1 in --tool|--error-exitcode) shift 2 ;; *) exit 2 ;; esac; done
exec "$@"
"""


@lru_cache(maxsize=None)
def options_of(script):
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True)
    return set(re.findall(r"--[a-z0-9-]+", done.stdout))


@pytest.fixture
def calls(tmp_path):
    """Function (part, ...) -> [[folder, argument, ...] of each call of Python], and the results' folder."""
    log, folder = tmp_path / "log", tmp_path / "bin"
    folder.mkdir()
    for name, text in {"python3": STUB.format(python=sys.executable, log=str(log)), "compute-sanitizer": SANITIZER,
                       "nvidia-smi": "#!/bin/sh\necho 9.0\n"}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)

    def run(*part):
        log.write_text("")
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "DBLR_FAST_CUDA_ARCHS")}
        environment |= {"PATH": f"{folder}:{os.environ['PATH']}", "DBLR_FAST_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(["bash", ROOT / "benchmarks" / "gpu_check.sh", tmp_path / "results", *part],
                              capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads(line) for line in log.read_text().splitlines()], tmp_path / "results"

    return run


@pytest.mark.parametrize("part", ((), ("triton",)), ids=str)
def test_every_call_is_one_that_works(calls, part):
    made, results = calls(*part)
    scripts = 0
    for folder, *arguments in made:
        if arguments[:1] == ["-m"]:
            assert arguments[1] in ("pip", "pytest", "dblr_fast")
            for path in (a for a in arguments[2:] if a.endswith(".py")):
                assert Path(path).is_file(), path
        elif arguments[:1] != ["-c"]:
            script, given = arguments[0], [a for a in arguments[1:] if a.startswith("--")]
            assert Path(script).is_file(), script
            if script.endswith("gpu_smoke.py"):
                continue
            assert set(given) <= options_of(script), f"{script}: {set(given) - options_of(script)}"
            assert Path(folder) == results.resolve()  # results lie beside one another, the checkout is not imported
            scripts += 1
    assert scripts >= 1
    written = {path.name for path in results.iterdir()}
    tests = "triton_tests.log" if part else "test_float32.log"
    assert {"info.txt", "summary.txt", tests} <= written and sum(name.endswith(".json") for name in written) == scripts
    if not part:
        assert "done" in (results / "racecheck_train.log").read_text() and "build.log" in written


def test_a_folder_is_asked_for():
    done = subprocess.run(["bash", ROOT / "benchmarks" / "gpu_check.sh"], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "usage: gpu_check.sh RESULTS_FOLDER" in done.stderr
