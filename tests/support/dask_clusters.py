"""Dask clusters on this machine: in the test's process, or in a process that a test may kill."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess

import psutil

from cgverify.plan.batches import Job

JOB = Job(("cgverify",), threads=1)


@contextlib.contextmanager
def dask_cluster(workers: int) -> Iterator[str]:
    """Start a scheduler with workers that declare 8 GB each, and yield its address.

    The workers are forked from a server that has imported torch, so that a lost worker is replaced at once.
    """
    import dask

    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        import distributed
        from distributed.utils import get_mp_context

        get_mp_context().set_forkserver_preload(["distributed", "cgverify.runs.execute.in_process"])
        with distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address=None,
            memory_limit=None,
            resources={"memory": 8e9},
            silence_logs=logging.CRITICAL,
        ) as cluster:
            yield cluster.scheduler_address


@contextlib.contextmanager
def separate_cluster(workers: int) -> Iterator[tuple[str, ForkServerProcess]]:
    """Start a cluster in another process, and yield its address and that process."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=_until_killed, args=(workers, theirs))
    process.start()
    try:
        yield ours.recv(), process
    finally:
        process.kill()
        process.join()


def workers_of(process: ForkServerProcess) -> list[psutil.Process]:
    """Return the workers of a separate cluster, which are forked from a server that is forked from its process."""
    servers = psutil.Process(process.pid).children()
    return [worker for server in servers for worker in server.children()]


def _until_killed(workers: int, pipe: Connection) -> None:
    with dask_cluster(workers) as address:
        pipe.send(address)
        time.sleep(3600)
