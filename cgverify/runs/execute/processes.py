"""Local worker processes that verify batches.

Workers are forked from a server that has imported torch once, so that a lost worker is replaced at once. Each worker
has a pipe to the parent process. It receives a batch, sends each cell before it observes the cell, and at last sends
the results of the batch. So the parent process knows at which cell a worker was lost (see `batch_queue`).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any

from cgverify.common.environment import hush_libraries
from cgverify.common.records import Cell, CellResult
from cgverify.plan.batches import BatchWeights, CellBatch, Job
from cgverify.runs.execute.batch_queue import BatchQueue
from cgverify.runs.execute.worker_error import worker_error


@dataclass
class LocalWorker:
    """A worker process, as the parent process knows it."""

    process: ForkServerProcess
    pipe: Connection
    batch: CellBatch | None = None
    cell: Cell | None = None
    """The cell that it observes; None before the first cell of its batch and after the last."""
    in_view: BatchWeights | None = None
    """The weights of its last batch."""


class Processes:
    """Runs batches on local processes. See `cgverify.plan.batches.Executor`."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["cgverify.runs.execute.in_process"])

    def run(self, batches: Sequence[CellBatch], job: Job) -> Iterator[CellResult]:
        queue = BatchQueue(batches)
        workers = [self._start_worker(job) for _ in range(min(self._jobs, len(batches)))]
        try:
            while queue or any(worker.batch for worker in workers):
                for worker in workers:
                    if worker.batch is None and queue:
                        others = [other.in_view for other in workers if other is not worker]
                        _send(worker, queue.take(worker.in_view, others))
                for ready in wait([worker.pipe for worker in workers if worker.batch]):
                    worker = next(worker for worker in workers if worker.pipe is ready)
                    try:
                        yield from _receive(worker)
                    except (EOFError, OSError):
                        assert worker.batch is not None
                        yield from queue.put_back_lost(worker.batch, worker.cell, _exit_reason(worker.process))
                        workers[workers.index(worker)] = self._start_worker(job)
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.join()
                worker.pipe.close()

    def _start_worker(self, job: Job) -> LocalWorker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, job), daemon=True)
        process.start()
        theirs.close()  # so that reading from the pipe fails as soon as the worker is gone
        return LocalWorker(process, ours)


def _send(worker: LocalWorker, batch: CellBatch) -> None:
    worker.batch, worker.cell, worker.in_view = batch, None, batch.in_view
    with contextlib.suppress(OSError):  # if the worker was lost while it waited, reading from its pipe fails next
        worker.pipe.send(batch)


def _receive(worker: LocalWorker) -> list[CellResult]:
    """Read one message of a worker, and return the results of its batch if it is finished.

    Raises:
        CgverifyError: the worker met an error that concerns the whole run.
        EOFError, OSError: the worker is lost.
    """
    kind, content = worker.pipe.recv()
    if kind == "cell":
        worker.cell = content
        return []
    if kind == "error":
        raise content
    worker.batch = None
    results: list[CellResult] = content
    return results


def _exit_reason(process: ForkServerProcess) -> str:
    process.join()
    code = process.exitcode or 0
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"it exited with {code}"


def _work(pipe: Connection, job: Job) -> None:
    """Verify batches until the parent process is gone. This runs in a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent process, which stops its workers
    os.dup2(2, 1)  # what candidates print must not be mixed with the report
    sys.stdout = sys.stderr
    from cgverify.runs.execute.in_process import BatchVerifier

    def send(kind: str, content: Any) -> None:
        pipe.send((kind, content))

    if not job.warnings:
        hush_libraries()
    try:
        verifier = BatchVerifier(job)
        while True:
            batch: CellBatch = pipe.recv()
            send("results", list(verifier.verify(batch, lambda cell: send("cell", cell))))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        send("error", worker_error(error))
