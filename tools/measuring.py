"""What several scripts share: the cost of a whole process, and a Dask cluster on this machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import distributed


@dataclass(frozen=True)
class Cost:
    """What a process took, imports included."""

    wall: float
    """Seconds on the clock."""
    cpu: float
    """Seconds of processor time, user and system."""
    peak: int
    """Bytes of resident memory at its peak (`ru_maxrss` of `os.wait4`)."""


def run_process(command: Sequence[str], stdout: Path) -> Cost:
    """Run a command offline, with its stdout in a file, and return what it took. Exit if the command fails."""
    started = time.perf_counter()
    with stdout.open("w") as file:
        process = subprocess.Popen(command, stdout=file, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{stdout.read_text()[-2000:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss)


@contextlib.contextmanager
def loopback_cluster(workers: int) -> Iterator[tuple[str, distributed.Client]]:
    """Start a Dask cluster of processes with one thread each. Yield its address and a client when all have started."""
    with (
        distributed.LocalCluster(n_workers=workers, threads_per_worker=1, host="127.0.0.1") as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(workers)
        yield cluster.scheduler_address, client
