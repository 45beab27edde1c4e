"""Memory that this process may take, under its container's limit as well as the machine's, and memory it has taken."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil

from cgverify.common.c_library import c_library
from cgverify.common.control_groups import GROUPS, PROC, control_groups
from cgverify.common.printable import message_of

VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = ("memory.max", "memory.current", "inactive_file")
"""Files of a control group: its limit, the memory in use, and (a line of `memory.stat`) the part that caches files."""


def total(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Return the bytes that this process could take if nothing else ran: the same number at any time."""
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _limits(proc, groups))])


def available(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Return the bytes that this process can still take before the system swaps or ends it."""
    return max(0, min([int(psutil.virtual_memory().available), *(left for _, left in _limits(proc, groups))]))


def taken() -> int:
    """Return the bytes of memory that this process has taken."""
    return int(psutil.Process().memory_info().rss)


def give_back_freed() -> None:
    """Return the heap's free memory to the system.

    Thousands of tensors in each layer fragment the heap, and glibc by itself returns only its end: at codegen-350M,
    135 MB would stay. Other C libraries have no such call and need none.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        c_library().malloc_trim(0)


def _limits(proc: Path, groups: Path) -> Iterator[tuple[int, int]]:
    """Yield the limit of each control group of this process, with the bytes that are left of it."""
    for version, group in control_groups("memory", proc, groups):
        with contextlib.suppress(OSError, ValueError):  # no such group, or its limit is "max"
            yield _limit(group, *(VERSION_2 if version == 2 else VERSION_1))


def _limit(group: Path, limit: str, used: str, cached: str) -> tuple[int, int]:
    most = int((group / limit).read_text())
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return most, most - int((group / used).read_text()) + int(stat.get(cached, 0))


def is_shortage(error: BaseException) -> bool:
    """Return whether an exception says that memory is short, on this machine or on a device.

    torch has a class of its own for most devices; its allocator of the CPU raises a plain RuntimeError.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = message_of(error).lower() if isinstance(error, RuntimeError) else ""
    return any(phrase in said for phrase in ("out of memory", "allocate memory", "not enough memory"))
