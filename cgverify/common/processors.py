"""Processors that this process may use, under its container's limit as well as the machine's."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from cgverify.common.control_groups import GROUPS, PROC, control_groups


def processors(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Return how many threads this process can run at the same time.

    A container with the time of 2.5 processors counts as two: a third thread would be stopped half of the time.
    """
    found = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for version, group in control_groups("cpu", proc, groups):
        with contextlib.suppress(OSError, ValueError):  # no such group, or its quota is "max"
            quota, period = _quota(version, group)
            if quota > 0:  # version 1 writes -1 if there is none
                found.append(quota // period)
    return max(1, min(found))


def _quota(version: int, group: Path) -> tuple[int, int]:
    """Return the microseconds of processor time that a group has in each period, and the microseconds of a period."""
    if version == 2:
        quota, period = (group / "cpu.max").read_text().split()
    else:
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    return int(quota), int(period)
