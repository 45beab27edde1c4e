"""How much memory this process may still take: what the machine has free, or what is left of its control groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = ("memory.max", "memory.current", "inactive_file")
"""Files of a control group: its limit, what is used, and what of that is a cache of files (a line of `memory.stat`)."""


def available(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that may still be taken, without what the system would have to swap out.

    A container's limit is a control group's, and /proc/meminfo knows nothing of it.
    """
    return max(0, min([int(psutil.virtual_memory().available), *_left_in_groups(proc, groups)]))


def taken() -> int:
    """Bytes of memory that this process has taken by now."""
    return int(psutil.Process().memory_info().rss)


def _left_in_groups(proc: Path, groups: Path) -> Iterator[int]:
    """What is left of each limit on this process's way up to the root."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, names = groups, VERSION_2
        elif "memory" in controllers.split(","):
            mount, names = groups / "memory", VERSION_1
        else:
            continue
        own = PurePosixPath(path).relative_to("/")
        for group in (own, *own.parents):  # inside a container its own path may not be there, only the root
            left = _left(mount / group, *names)
            if left is not None:
                yield left


def _left(group: Path, limit: str, used: str, cached: str) -> int | None:
    try:
        most = (group / limit).read_text().strip()
        if most == "max":
            return None
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(most) - int((group / used).read_text()) + int(stat.get(cached, 0))
    except (OSError, ValueError):
        return None
