"""A Dask cluster: where its scheduler is, or one on loopback for one run."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cgverify.common.errors import UsageError
from cgverify.plan.batches import Job
from cgverify.runs.execute.dask_worker import MEMORY

CONFIG: dict[str, Any] = {
    "distributed.worker.multiprocessing-method": "forkserver",
    "distributed.nanny.pre-spawn-environ": {},
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}
"""Workers are forked, in the environment that local processes have. Dask opens an HTTP port in any case, on loopback
here: nothing is to be had there."""


@dataclass(frozen=True)
class Cluster:
    """Where workers are."""

    scheduler: str | None = None
    """`tcp://host:port` or `tls://host:port`; None starts a cluster on loopback."""
    workers: int = 1
    """Of the cluster on loopback."""

    def __post_init__(self) -> None:
        if importlib.util.find_spec("distributed") is None:
            raise UsageError("A Dask cluster needs dask.distributed: pip install 'cgverify[dask]'.")
        if self.scheduler is not None and not re.fullmatch(r"(tcp|tls)://.+:\d+", self.scheduler):
            raise UsageError(f"--scheduler {self.scheduler!r} is no address: write tcp://host:8786.")


@contextlib.contextmanager
def local_cluster(workers: int, job: Job) -> Iterator[str]:
    """Workers of one Dask thread each, which share this machine's memory; gives the scheduler's address.

    They are forked from a server that has imported torch and its company once, so that one that died is replaced in no
    time. What `job.threads` says of torch they set themselves.
    """
    import dask

    with dask.config.set(CONFIG):
        import distributed
        from distributed.system import MEMORY_LIMIT
        from distributed.utils import get_mp_context

        get_mp_context().set_forkserver_preload(["distributed", "cgverify.runs.execute.worker"])
        with distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            worker_dashboard_address=None,
            preload=["cgverify.runs.execute.local_worker"],
            memory_limit=None,
            resources={MEMORY: MEMORY_LIMIT / max(workers, 1)},
            silence_logs=logging.WARNING if job.warnings else logging.CRITICAL,
        ) as cluster:
            yield cluster.scheduler_address
