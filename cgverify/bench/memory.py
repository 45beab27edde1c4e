"""Peak memory of one call, above what stood before it.

On the CPU of a fresh process for each figure, since a process that has worked keeps memory that hides the next peak;
Linux alone lets a process forget its peak. On an accelerator its allocator's own count.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cgverify.common.errors import CgverifyError


@dataclass(frozen=True)
class MemoryRequest:
    """What a fresh process is to measure."""

    point: dict[str, Any]
    model: str
    weights: str
    rotary_dim: int
    candidate: str | None
    """None is the reference."""
    threads: int


class PeakError(CgverifyError):
    """No figure could be had."""


def peak(run: Callable[[], object], device: torch.device) -> int:
    """Bytes at the height of a call above those before it.

    Raises:
        PeakError: this system does not tell.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    forget = Path("/proc/self/clear_refs")
    if device.type != "cpu" or not forget.exists():
        raise PeakError(f"peak memory on {device.type} is not told by this system")
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)  # what was freed but kept would be used again without showing
    try:
        forget.write_text("5")
    except OSError as error:
        raise PeakError(f"this system does not let a process forget its peak memory: {error.strerror}") from error
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def in_fresh_process(request: MemoryRequest) -> int:
    """The figure of a request, measured by `python -m cgverify.bench.fresh`.

    Raises:
        PeakError: with what the process said, where it failed.
    """
    command = [sys.executable, "-m", "cgverify.bench.fresh", json.dumps(asdict(request))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    try:
        told = json.loads(lines[-1])
        if "bytes" in told:
            return int(told["bytes"])
        raise PeakError(told["message"])
    except (IndexError, ValueError, KeyError, TypeError):
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise PeakError(f"the fresh process failed: {said}") from None


def _status(field: str) -> int:
    """A line of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
