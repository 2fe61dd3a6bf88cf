"""How much memory is available: on the machine, and within control groups of either version."""

import pytest

from dblr_fast.memory import available

MIB = 2**20
MEMINFO = "MemTotal:  4096 kB\nMemAvailable:  3072 kB\nHugePages_Total:  0\n"
STAT = {"memory.stat": f"anon 99\nfile {MIB}\n"}
STAT_V1 = {"memory.stat": f"cache 7\ntotal_cache {MIB}\n"}


def v2(group, most, used):
    return {f"sys/fs/cgroup{group}/{name}": text for name, text in
            {"memory.max": f"{most}\n", "memory.current": f"{used}\n", **STAT}.items()}


def v1(group, most, used):
    return {f"sys/fs/cgroup/memory{group}/{name}": text for name, text in
            {"memory.limit_in_bytes": f"{most}\n", "memory.usage_in_bytes": f"{used}\n", **STAT_V1}.items()}


@pytest.mark.parametrize("files, expected", [
    pytest.param({}, None, id="not Linux"),
    pytest.param({"proc/meminfo": "MemTotal: 4 kB\n"}, None, id="an old kernel"),
    pytest.param({"proc/meminfo": MEMINFO}, 3 * MIB, id="no groups"),
    pytest.param({"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/\n", **v2("", "max", 5)}, 3 * MIB, id="no limit"),
    pytest.param({"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/a/b\n", **v2("/a/b", 4 * MIB, 3 * MIB)}, 2 * MIB,
                 id="of the group, files' pages given back"),
    pytest.param({"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/a/b\n", **v2("/a/b", "max", 5),
                  **v2("/a", 2 * MIB, 2 * MIB)}, MIB, id="of the group above"),
    pytest.param({"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/outside\n", **v2("", 4 * MIB, 3 * MIB)}, 2 * MIB,
                 id="in a container that names the group outside"),
    pytest.param({"proc/meminfo": MEMINFO, "proc/self/cgroup": "5:cpu:/x\n4:hugetlb,memory:/x\n",
                  **v1("/x", 4 * MIB, 4 * MIB)}, MIB, id="version 1"),
    pytest.param({"proc/self/cgroup": "0::/\n", **v2("", MIB, 4 * MIB)}, 0, id="over the limit"),
])
def test_available(tmp_path, files, expected):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert available(tmp_path) == expected


def test_of_this_machine():
    free = available()
    assert free is None or free > MIB
