"""A Dask cluster whose workers verify batches.

The driver, which is the process that runs cgverify, gives each worker one batch at a time, chosen by the weights that
the worker has in view. So one worker reads a layer's weights for as long as there is work for them, layers spread over
workers, and neither scheduler nor driver stores more than one batch per worker. Dask carries batches and results, keeps
workers alive, and reports which workers come and go.

Each worker first reports its versions. A worker with other versions than the driver's would compute other bits, and
gets no work. Before a worker observes a cell, it sends an event through the scheduler. So the driver knows at which
cell a worker was lost, and puts its batch back.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cgverify.common import numerics
from cgverify.common.errors import CgverifyError
from cgverify.common.records import CellResult
from cgverify.plan.batches import CellBatch, Job, lost
from cgverify.plan.cost import of_plan
from cgverify.runs.execute import dask_worker
from cgverify.runs.execute.batch_queue import BatchQueue, Worker, longest_first
from cgverify.runs.execute.dask_worker import MEMORY, WorkerReport

CONNECT = 10.0
"""Seconds in which the scheduler must answer."""

NO_WORKERS = 300.0
"""Seconds after which a run on a cluster without workers ends."""

POLL = 5.0
"""Seconds without an event after which the scheduler is asked for its workers."""

LOST_AT_SET_UP = 8
"""The number of workers in a row that may be lost before they are set up."""

SCHEDULER_LOST = "The Dask scheduler is gone: what arrived is kept, start it again, and --resume goes on."

_log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class DaskWorker(Worker):
    address: str
    future: Any = None
    """The future of its report, and then of its batch."""
    ready: bool = False
    """Whether it may be given batches."""
    refused: str = ""
    """Why it is never given batches."""
    missing: bool = False
    """Whether the scheduler did not name it at the last poll."""
    memory: float | None = None
    """The bytes that it declares."""


class Dask:
    """Runs batches on a Dask cluster. See `cgverify.plan.batches.Executor`."""

    def __init__(self, scheduler: str, memory: Callable[[CellBatch], float] = of_plan.memory) -> None:
        """
        Args:
            scheduler: its address.
            memory: estimates the bytes that a batch takes.
        """
        self._scheduler, self._memory = scheduler, memory

    def run(self, batches: Sequence[CellBatch], job: Job) -> Iterator[CellResult]:
        """Raises CgverifyError also if the scheduler does not answer, is lost, or has no workers."""
        if not batches:
            return
        import distributed

        ordered = [_with_absolute_path(batch) for batch in longest_first(batches)]
        # The warnings of libraries go to a worker's own log, so they need not be hidden.
        sent = replace(job, folder=job.folder and job.folder.resolve(), warnings=True)
        with contextlib.nullcontext() if job.warnings else _silenced_dask():
            try:
                client = distributed.Client(self._scheduler, timeout=CONNECT, set_as_default=False)
            except OSError as error:
                raise CgverifyError(
                    f"No Dask scheduler answers at {self._scheduler}: start one, `dask scheduler`."
                ) from error
            with client:
                yield from _Driver(client, ordered, sent, self._memory).results()


class _Driver:
    """One run on one cluster."""

    def __init__(
        self, client: Any, batches: Sequence[CellBatch], job: Job, memory: Callable[[CellBatch], float]
    ) -> None:
        self._client, self._job, self._memory = client, job, memory
        self._queue = BatchQueue(batches)
        self._workers: dict[str, DaskWorker] = {}
        """By address."""
        self._events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        """What Dask's threads report: `cell`, `worker` or `done`, each with its content."""
        self._topic = f"cgverify-{uuid.uuid4().hex[:8]}"
        self._versions = numerics.versions()
        self._numerics = numerics.pin_numerics(job.threads, job.allow)
        self._lost_at_set_up = 0
        self._warned: set[str] = set()
        self._last_seen = time.monotonic()
        """The last time at which there was a worker."""

    def results(self) -> Iterator[CellResult]:
        topics = {"all": "worker", self._topic: "cell"}
        for topic, kind in topics.items():
            self._client.subscribe_topic(topic, lambda event, kind=kind: self._events.put((kind, event[1])))
        try:
            yield from self._results()
        finally:
            for topic in topics if self._client.status == "running" else ():
                self._client.unsubscribe_topic(topic)

    def _results(self) -> Iterator[CellResult]:
        self._poll()
        while self._queue or any(worker.batch for worker in self._workers.values()):
            for worker in self._workers.values():
                if worker.ready and worker.batch is None:
                    self._give_batch(worker)
            yield from self._too_large()
            try:
                kind, content = self._events.get(timeout=POLL)
            except queue.Empty:
                self._require_workers()
                self._poll()
                continue
            if kind == "done":
                yield from self._done(*content)
            elif kind == "cell":
                self._observes(*content)
            elif content.get("action") == "add-worker":
                self._add(content["worker"])
            elif content.get("action") == "remove-worker":
                yield from self._remove(content["worker"], expected=bool(content.get("expected")))

    def _give_batch(self, worker: DaskWorker) -> None:
        """Give a worker the next batch that it has the memory for, if there is one."""
        memory = worker.memory
        others = {other.in_view for other in self._workers.values() if other is not worker}
        batch = self._queue.take(worker.in_view, others, lambda one: memory is None or self._memory(one) <= memory)
        if batch is not None:
            worker.start(batch)
            resources = {} if memory is None else {MEMORY: self._memory(batch)}
            self._submit(worker, dask_worker.verify, batch, self._job, self._topic, resources=resources)

    def _submit(self, worker: DaskWorker, function: Any, *arguments: Any, resources: dict[str, float]) -> None:
        """Call a function on one worker."""
        future = worker.future = self._client.submit(
            function, *arguments, workers=[worker.address], allow_other_workers=False, pure=False, resources=resources
        )
        future.add_done_callback(lambda done: self._events.put(("done", (worker, done))))

    def _observes(self, task: str, place: int | None) -> None:
        for worker in self._workers.values():
            if worker.batch is not None and worker.future.key == task:
                worker.cell = None if place is None else worker.batch.cells[place]

    def _add(self, address: str) -> None:
        if address not in self._workers:
            worker = self._workers[address] = DaskWorker(address=address)
            self._submit(worker, dask_worker.set_up, self._job, self._versions, resources={})

    def _remove(self, address: str, *, expected: bool) -> list[CellResult]:
        """Put the batch of a lost worker back, and return errors for what is given up.

        Args:
            expected: whether the worker was asked to leave, so that no cell is the reason.
        """
        worker = self._workers.pop(address, None)
        if worker is None:
            return []
        self._last_seen = time.monotonic()
        worker.future.release()
        if not (worker.ready or worker.refused or expected):
            self._lost_at_set_up += 1
        if self._lost_at_set_up >= LOST_AT_SET_UP:
            raise CgverifyError(
                f"{LOST_AT_SET_UP} workers were lost before their first batch, {address} the last: see its log."
            )
        if worker.batch is None:
            return []
        if expected:
            self._queue.put_back(worker.batch)
            return []
        return self._queue.put_back_lost(worker.batch, worker.cell, f"{address} is lost")

    def _done(self, worker: DaskWorker, future: Any) -> list[CellResult]:
        """Take what a worker returned."""
        if future is not worker.future or self._workers.get(worker.address) is not worker:
            return []  # the worker was lost in the meantime, and its batch was put back
        if future.status == "cancelled":
            raise CgverifyError(SCHEDULER_LOST)
        if future.status == "error":
            return self._failed(worker, future.exception())
        try:
            returned = future.result(timeout=POLL)
        except Exception as error:  # usually the worker was lost with the result
            return self._failed(worker, error)
        future.release()
        if isinstance(returned, CgverifyError):
            returned.args = (f"{returned} (on {worker.address})",)
            raise returned
        if isinstance(returned, WorkerReport):
            self._accept(worker, returned)
            return []
        worker.batch = worker.cell = None
        results: list[CellResult] = returned
        return results

    def _failed(self, worker: DaskWorker, error: Any) -> list[CellResult]:
        from distributed.scheduler import KilledWorker

        if isinstance(error, KilledWorker):  # the scheduler sends an event about it as well
            return []
        if worker.batch is None:
            self._refuse(worker, f"cannot take part: {type(error).__name__}: {error}")
            return []
        batch, worker.batch = worker.batch, None
        return self._queue.put_back_lost(batch, worker.cell, f"{type(error).__name__} on {worker.address}")

    def _accept(self, worker: DaskWorker, report: WorkerReport) -> None:
        """Let a worker have batches, unless its versions differ from the driver's."""
        for package, ours in self._versions.items():
            theirs = report.versions.get(package, "not installed")
            if theirs != ours:
                self._refuse(worker, f"has {package} {theirs}, and the driver {ours}: install the same")
                return
        for flag, value in self._numerics.items():
            if report.numerics.get(flag) != value:
                self._warn_once(
                    f"Some workers have {flag} {report.numerics.get(flag)}, and the driver {value}: verdicts are valid "
                    "there too, but last digits may differ from worker to worker."
                )
        if not report.sees_folder and self._job.keep_tensors != "none":
            self._warn_once(
                "Some workers cannot reach the run folder, and keep no tensors of failures: to keep them, give "
                "--output on a shared disk."
            )
        self._lost_at_set_up = 0
        worker.ready, worker.memory = True, report.memory

    def _refuse(self, worker: DaskWorker, reason: str) -> None:
        worker.refused = reason
        _log.error("The worker %s %s.", worker.address, reason)

    def _warn_once(self, sentence: str) -> None:
        if sentence not in self._warned:
            self._warned.add(sentence)
            _log.error(sentence)

    def _too_large(self) -> list[CellResult]:
        """Return errors for batches that no worker has the memory for, once all workers are ready and idle."""
        workers = [worker for worker in self._workers.values() if not worker.refused]
        if not workers or not all(worker.ready and worker.batch is None for worker in workers):
            return []
        results: list[CellResult] = []
        while batch := self._queue.take(None, ()):
            needed = f"it takes about {self._memory(batch) / 1e9:.1f} GB, and no worker declares so much"
            results += lost(batch.cells, f"{needed}: start workers with more memory.")
        return results

    def _require_workers(self) -> None:
        """Raise CgverifyError if all workers are refused, or there has been no worker for long."""
        if any(not worker.refused for worker in self._workers.values()):
            self._last_seen = time.monotonic()
        elif self._workers:
            worker = next(iter(self._workers.values()))
            raise CgverifyError(f"No worker is left: {worker.address} {worker.refused}.")
        elif time.monotonic() - self._last_seen > NO_WORKERS:
            raise CgverifyError(
                f"The scheduler has had no worker for {NO_WORKERS:.0f} s: start some, `dask worker`. What arrived is "
                "kept, and --resume goes on."
            )

    def _poll(self) -> None:
        """Ask the scheduler for its workers, since its events may be late or lost."""
        if self._client.status != "running":
            raise CgverifyError(SCHEDULER_LOST)
        try:
            present = self._client.scheduler_info()["workers"]
        except OSError as error:
            raise CgverifyError(SCHEDULER_LOST) from error
        for address in present:
            self._add(address)
        for address, worker in self._workers.items():
            gone = address not in present
            if gone and worker.missing:  # at the second poll, since an event about it may have been on its way
                self._events.put(("worker", {"action": "remove-worker", "worker": address}))
            worker.missing = gone


def _with_absolute_path(batch: CellBatch) -> CellBatch:
    """Make the path of a checkpoint in a folder absolute, since workers have other working directories."""
    asked = Path(batch.checkpoint.asked)
    if not asked.is_dir():
        return batch
    return replace(batch, checkpoint=batch.checkpoint.model_copy(update={"asked": str(asked.resolve())}))


@contextlib.contextmanager
def _silenced_dask() -> Iterator[None]:
    """Silence Dask's own messages about lost workers and schedulers, which this module reports in a sentence."""
    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.client", "distributed.scheduler")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
