"""Clusters in processes of their own, which tests may kill."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess

import psutil

from cgverify.plan.batches import Job
from cgverify.runs.execute.cluster import Cluster, local_cluster

JOB = Job(("cgverify",), threads=1)


@contextlib.contextmanager
def apart(workers: int) -> Iterator[tuple[Cluster, ForkServerProcess]]:
    """A scheduler with workers, and the process that both depend on."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=_until_killed, args=(workers, theirs))
    process.start()
    try:
        yield Cluster(ours.recv()), process
    finally:
        process.kill()
        process.join()


def _until_killed(workers: int, pipe: Connection) -> None:
    with local_cluster(workers, JOB) as address:
        pipe.send(address)
        time.sleep(3600)


def workers_of(process: ForkServerProcess) -> list[psutil.Process]:
    """Of a cluster that stands apart: they are forked from a server that is forked from it."""
    servers = psutil.Process(process.pid).children()
    return [worker for server in servers for worker in server.children()]
