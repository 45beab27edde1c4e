"""What runs on the workers of a Dask cluster.

A Dask worker is a process; in it lives one `Worker`, with its window open, from one batch to the next. torch's threads
and flags are the process's, so batches are verified one at a time, whatever number of threads the Dask worker has.

The scheduler unpickles what is sent through it, so nothing heavy is imported at the top.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cgverify.common import environment
from cgverify.common.errors import CgverifyError
from cgverify.common.printable import said
from cgverify.common.records import Cell, CellResult
from cgverify.plan.batches import CellBatch, Job

if TYPE_CHECKING:
    from cgverify.runs.execute.worker import Worker

T = TypeVar("T")

MEMORY = "memory"
"""The Dask resource, in bytes, that workers may declare and batches then need."""

BEFORE_OR_AFTER = -1
"""Told instead of a cell's place, before the first of a batch and after the last."""


@dataclass(frozen=True)
class Introduction:
    """What a worker says of itself before it is given batches."""

    versions: dict[str, str]
    numerics: dict[str, Any]
    """As they were set for this run; empty where versions are others than expected."""
    memory: float | None
    """Bytes that it declares; None where it declares nothing."""
    sees_folder: bool
    """Whether the run folder, if there is one, can be reached."""


@dataclass(frozen=True)
class Raised:
    """What concerns the whole run. Errors themselves do not survive pickling."""

    sentence: str
    exit_code: int


class LetGoError(Exception):
    """Nobody waits for this batch any longer."""


_one_at_a_time = threading.Lock()
_employed: tuple[Job, Worker] | None = None


def introduce(job: Job, expected: dict[str, str]) -> Introduction | Raised:
    """Be set to a run, if the versions are as expected."""
    import distributed

    declared = distributed.get_worker().state.total_resources.get(MEMORY)
    sees_folder = job.folder is None or Path(job.folder, "run.json").is_file()
    versions = environment.versions()
    if versions != expected:
        return Introduction(versions, {}, declared, sees_folder)

    def begin() -> Introduction:
        _worker_of(job)
        return Introduction(versions, environment.pin_numerics(job.threads, job.allow), declared, sees_folder)

    return _alone(begin)


def verify(batch: CellBatch, job: Job, run: str, number: int) -> list[CellResult] | Raised:
    """A batch's results.

    Args:
        run: the topic under which each cell is told before it is observed, so that it is known what a worker died of.
        number: stands for this batch there.

    Raises:
        LetGoError: between two cells, when the run has ended before.
    """
    import distributed
    from distributed.utils import sync

    dask_worker = distributed.get_worker()
    task = dask_worker.get_current_task()
    places = {cell.id: place for place, cell in enumerate(batch.cells)}

    def watch(cell: Cell | None) -> None:
        state = dask_worker.state.tasks.get(task)
        if state is None or state.state == "cancelled":
            raise LetGoError
        place = BEFORE_OR_AFTER if cell is None else places[cell.id]
        sync(dask_worker.loop, dask_worker.scheduler.log_event, topic=run, msg=[number, place])

    return _alone(lambda: list(_worker_of(job).verify(batch, watch)))


def _worker_of(job: Job) -> Worker:
    """The one who verifies here; another run gets another, and torch's settings with it."""
    global _employed
    if _employed is None or _employed[0] != job:
        from cgverify.runs.execute.worker import Worker

        if not job.warnings:
            environment.hush_libraries()
        _employed = None  # let go of one window before the next is opened
        _employed = job, Worker(job)
    return _employed[1]


def _alone(work: Callable[[], T]) -> T | Raised:
    """Do it while nothing else is done here; what it raises comes back in a form that travels.

    What candidates print must not stand in the report.
    """
    with _one_at_a_time, contextlib.redirect_stdout(sys.stderr):
        try:
            return work()
        except LetGoError:
            raise
        except CgverifyError as error:
            return Raised(str(error), error.exit_code)
        except Exception as error:
            return Raised(f"{type(error).__name__}: {said(error)}", CgverifyError.exit_code)
