import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from dblr_fast.training.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        maps = [torch.ones(10 << 20) for _ in range(4)]  # 40 MB each
        del maps
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(8)
print(faults(8))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is asked to keep memory")
def test_freed_memory_is_kept_for_the_next_step():
    faults = {how: int(subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True).stdout)
              for how in ("kept", "as it comes")}
    assert faults["kept"] < faults["as it comes"] / 4


def test_train_asks_for_it(monkeypatch, tmp_path, capsys):
    from dblr_fast import cli
    from dblr_fast.training import memory
    asked = []
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: asked.append(True))
    assert cli.main(["train", "tiny.yaml", "--data.paths", str(tmp_path), "--folder", str(tmp_path / "run")]) == 2
    assert asked and str(tmp_path) in capsys.readouterr().err
