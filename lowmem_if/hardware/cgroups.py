"""The memory limit of the container that this process runs in (control groups v1 and v2).

psutil and `free` report the host. The kernel kills by the tightest limit between the process's own group
and the root. It drops a group's page cache that was not used lately (`inactive_file`) before it kills
anything, so that cache does not count as used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED = 1 << 60
"""v1 writes "no limit" as 2**63 rounded down to a page."""


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """A limited group: its limit, the bytes still available under it, and its folder."""

    limit_bytes: int
    available_bytes: int
    folder: str


def tightest_group(root: Path = Path("/")) -> GroupMemory | None:
    """The group between the process and the root with the least available; None without a limit.

    Args:
        root: root of the file system, another one in tests.
    """
    groups = [group for group in map(_read_group, _folders(root)) if group]
    return min(groups, key=lambda group: group.available_bytes, default=None)


def _folders(root: Path) -> Iterator[Path]:
    """The process's memory groups and all their ancestors, innermost first."""
    try:
        lines = (root / "proc/self/cgroup").read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        for mount in _mounts(root, unified=not controllers):
            group = mount / path.lstrip("/")
            inside = ".." not in group.parts
            while inside and group != mount:
                yield group
                group = group.parent
            yield mount


def _mounts(root: Path, *, unified: bool) -> list[Path]:
    base = root / "sys/fs/cgroup"
    return [base, base / "unified"] if unified else [base / "memory"]


def _read_group(folder: Path) -> GroupMemory | None:
    names = (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for limit_name, usage_name, cache_name in names:
        limit = _number(folder / limit_name)
        if limit is None or limit >= _UNLIMITED:
            continue
        usage = _number(folder / usage_name) or 0
        reclaimable = _statistic(folder / "memory.stat", cache_name)
        used = min(limit, max(0, usage - reclaimable))
        return GroupMemory(limit, limit - used, str(folder))
    return None


def _number(file: Path) -> int | None:
    """The number in a control file; None for "max", garbage or no such file."""
    try:
        text = file.read_text(errors="replace").strip()
    except OSError:
        return None
    return int(text) if text.isascii() and text.isdecimal() else None


def _statistic(file: Path, name: str) -> int:
    try:
        lines = [line.split() for line in file.read_text(errors="replace").splitlines()]
    except OSError:
        return 0
    values = [words[1] for words in lines if len(words) == 2 and words[0] == name]
    return int(values[0]) if values and values[0].isascii() and values[0].isdecimal() else 0
