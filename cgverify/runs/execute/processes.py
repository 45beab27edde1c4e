"""Local worker processes that verify batches.

Workers are forked from a server that has imported torch once, so that a lost worker is replaced at once. Windows cannot
fork: each worker is a new process there. A worker has a pipe to the parent process. It receives a batch, sends each
cell before it observes the cell, and at last sends the results of the batch. So the parent process knows at which cell
a worker was lost.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

from cgverify.common.process import hush_libraries
from cgverify.common.records import CellResult
from cgverify.plan.batches import CellBatch, Job, Watch, unwatched
from cgverify.runs.execute.batch_queue import BatchQueue, Worker
from cgverify.runs.execute.worker_error import worker_error


@dataclass(kw_only=True, eq=False)
class LocalWorker(Worker):
    process: BaseProcess
    pipe: Connection


class Processes:
    """Runs batches on local processes. See `cgverify.plan.batches.Executor`."""

    def __init__(self, jobs: int, watch: Watch = unwatched) -> None:
        self._jobs, self._watch = jobs, watch
        self._context = _context()

    def run(self, batches: Sequence[CellBatch], job: Job) -> Iterator[CellResult]:
        queue = BatchQueue(batches)
        workers = [self._start_worker(job) for _ in range(min(self._jobs, len(batches)))]
        try:
            while True:
                for worker in workers:
                    others = [other.in_view for other in workers if other is not worker]
                    if worker.batch is None and (batch := queue.take(worker.in_view, others)):
                        worker.start(batch)
                        with contextlib.suppress(OSError):  # if the worker is lost, reading from its pipe fails next
                            worker.pipe.send(batch)
                busy = [worker for worker in workers if worker.batch]
                if not busy:
                    return
                ready = wait([worker.pipe for worker in busy])
                for worker in [worker for worker in busy if worker.pipe in ready]:
                    try:
                        yield from self._receive(worker)
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
        process: BaseProcess = self._context.Process(target=_work, args=(theirs, job), daemon=True)  # type: ignore[attr-defined]
        process.start()
        theirs.close()  # so that reading from the pipe fails as soon as the worker is gone
        return LocalWorker(process=process, pipe=ours)

    def _receive(self, worker: LocalWorker) -> list[CellResult]:
        """Read one message of a worker, and return the results of its batch if that is finished.

        Raises:
            CgverifyError: an error in the worker that ends the whole run.
            EOFError, OSError: the worker is lost.
        """
        kind, content = worker.pipe.recv()
        if kind == "error":
            raise content
        if kind == "cell":
            worker.cell = content
            self._watch(content)
            return []
        worker.batch = None
        results: list[CellResult] = content
        return results


def _context() -> BaseContext:
    """Return how workers are started: from a server, or on Windows, which cannot fork, as new processes."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cgverify.runs.execute.in_process"])
    return context


def _exit_reason(process: BaseProcess) -> str:
    process.join()
    code = process.exitcode or 0
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"it exited with {code}"


def _work(pipe: Connection, job: Job) -> None:
    """Verify batches until the parent process is gone. This runs in the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent process, which stops its workers
    gc.freeze()  # what the server has imported is in no garbage collection, of which each freed bridge needs one
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
