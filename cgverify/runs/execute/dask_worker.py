"""The functions that run on the workers of a Dask cluster.

A Dask worker is a process with one `BatchVerifier`, which keeps its weights in view from one batch to the next. torch's
threads and flags belong to the process, so batches are verified one at a time, however many threads the worker has.

The scheduler unpickles what is sent through it, so nothing heavy is imported at the top.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from cgverify.common import numerics, process
from cgverify.common.errors import CgverifyError
from cgverify.common.records import Cell, CellResult
from cgverify.plan.batches import CellBatch, Job
from cgverify.runs.execute.worker_error import worker_error

if TYPE_CHECKING:
    from cgverify.runs.execute.in_process import BatchVerifier

T = TypeVar("T")

MEMORY = "memory"
"""The Dask resource, in bytes, that workers may declare and that a batch then needs."""


@dataclass(frozen=True)
class WorkerReport:
    """What a worker reports before it is given batches."""

    versions: dict[str, str]
    numerics: dict[str, Any]
    """The flags that were set for this run; empty if the versions are not the expected ones."""
    memory: float | None
    """The bytes that it declares; None if it declares nothing."""
    sees_folder: bool
    """Whether it can reach the run folder, if there is one. Otherwise it keeps no tensors."""


class CancelledError(Exception):
    """The run ended before this batch was finished."""


_one_at_a_time = threading.Lock()
_current: tuple[Job, BatchVerifier] | None = None


def set_up(job: Job, expected: dict[str, str]) -> WorkerReport | CgverifyError:
    """Prepare this worker for a run, if it has the expected versions, and report on it."""
    import distributed

    memory = distributed.get_worker().state.total_resources.get(MEMORY)
    versions = numerics.versions()

    def report() -> WorkerReport:
        flags: dict[str, Any] = {}
        if versions == expected:
            _verifier_of(job)
            flags = numerics.pin_numerics(job.threads, job.allow)
        return WorkerReport(versions, flags, memory, _sees_folder(job))

    return _alone(report)


def verify(batch: CellBatch, job: Job, topic: str) -> list[CellResult] | CgverifyError:
    """Return the results of a batch.

    Args:
        topic: the topic of an event before each cell: this task's key, and the cell's place in the batch. After the
            last cell the place is None.

    Raises:
        CancelledError: between two cells, if the run has ended.
    """
    import distributed
    from distributed.utils import sync

    dask_worker = distributed.get_worker()
    task = dask_worker.get_current_task()
    places = {cell.id: place for place, cell in enumerate(batch.cells)}

    def watch(cell: Cell | None) -> None:
        state = dask_worker.state.tasks.get(task)
        if state is None or state.state == "cancelled":
            raise CancelledError
        message = [task, None if cell is None else places[cell.id]]
        sync(dask_worker.loop, dask_worker.scheduler.log_event, topic=topic, msg=message)

    return _alone(lambda: list(_verifier_of(job).verify(batch, watch)))


def _verifier_of(job: Job) -> BatchVerifier:
    """Return this worker's verifier. A new run gets a new one, which sets torch's threads and flags."""
    global _current
    if _current is None or _current[0] != job:
        from cgverify.runs.execute.in_process import BatchVerifier

        if not job.warnings:
            process.hush_libraries()
        _current = None  # free the old weights before new ones are read
        gc.collect()
        gc.freeze()  # what is imported is in no later garbage collection, of which each freed bridge needs one
        _current = job, BatchVerifier(job if _sees_folder(job) else replace(job, folder=None))
    return _current[1]


def _sees_folder(job: Job) -> bool:
    return job.folder is None or (job.folder / "run.json").is_file()


def _alone(work: Callable[[], T]) -> T | CgverifyError:
    """Do work while this process does nothing else, and return the error that it raises, if any.

    What candidates print must not be mixed with the report of a driver on the same terminal.
    """
    with _one_at_a_time, contextlib.redirect_stdout(sys.stderr):
        try:
            return work()
        except CancelledError:
            raise
        except Exception as error:
            return worker_error(error)
