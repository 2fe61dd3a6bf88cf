"""How much memory this process may still take, so that maps are planned to fit before the system ends it."""

from __future__ import annotations

from pathlib import Path


def available(root: Path = Path("/")) -> int | None:
    """Bytes that are free or can be freed, on the machine and within each control group this process is in.

    None where the system does not say (it is asked the way Linux answers).
    """
    free = [_of_machine(root), *_of_groups(root)]
    return min((max(f, 0) for f in free if f is not None), default=None)


def _of_machine(root: Path) -> int | None:
    kib = _fields(root / "proc/meminfo").get("MemAvailable:")
    return None if kib is None else kib * 1024


def _of_groups(root: Path):
    """What limits leave, of control groups in either version; a process is in a group and in all above it."""
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, group = line.split(":", 2)
        if number == "0" and not controllers:
            top, limit, used, cached = "sys/fs/cgroup", "memory.max", "memory.current", "file"
        elif "memory" in controllers.split(","):
            top, limit, used, cached = ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
                                        "total_cache")
        else:
            continue
        # In a container the names may be those outside, and only its own group, the top one, is there.
        names = Path(group.lstrip("/"))
        for folder in (root / top / names, *(root / top / parent for parent in names.parents), root / top):
            most, now = _number(folder / limit), _number(folder / used)
            if most is not None and now is not None:
                yield most - now + _fields(folder / "memory.stat").get(cached, 0)  # files' pages can be given back


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None  # "max" where there is no limit


def _fields(path: Path) -> dict[str, int]:
    """Of lines like "MemAvailable:  123 kB" or "file 123"."""
    pairs = (line.split()[:2] for line in _lines(path))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
