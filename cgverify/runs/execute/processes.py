"""Local worker processes that verify batches.

Workers are forked from this process, which has imported everything, if that is safe, and otherwise from a server that
imports it once more; on Windows each is a new process. A worker has a pipe to the parent process. It receives a batch,
sends each cell before it observes the cell, and at last sends the results of the batch. So the parent process knows at
which cell a worker was lost.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import statistics
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

from cgverify.checkpoint.lookup import CheckpointRequest
from cgverify.checkpoint.source import Source
from cgverify.common.process import hush_libraries
from cgverify.common.records import CellResult
from cgverify.plan.batches import CellBatch, Job, Watch, unwatched
from cgverify.plan.cost.of_plan import memory
from cgverify.runs.execute.batch_queue import BatchQueue, Worker, longest_first
from cgverify.runs.execute.worker_error import worker_error


@dataclass(kw_only=True, eq=False)
class LocalWorker(Worker):
    process: BaseProcess
    pipe: Connection


class Processes:
    """Runs batches on local processes. See `cgverify.plan.batches.Executor`."""

    def __init__(
        self, jobs: int, sources: Mapping[CheckpointRequest, Source] | None = None, watch: Watch = unwatched
    ) -> None:
        """
        Args:
            sources: the checkpoints that this process has opened already. A forked worker need not read all of a file
                again for its digest.
        """
        self._jobs, self._sources, self._watch = jobs, sources or {}, watch
        self._workers: list[LocalWorker] = []
        self._devices: set[str] = set()

    def run(self, batches: Sequence[CellBatch], job: Job) -> Iterator[CellResult]:
        """Start the workers, and return their results. Call this before a progress bar starts its thread."""
        self._devices = {batch.device for batch in batches}
        for _ in range(min(self._jobs, len(batches))):
            self._workers.append(self._start_worker(job))
        return self._results(BatchQueue(longest_first(batches)), job, most_memory(batches, self._jobs))

    def _results(self, queue: BatchQueue, job: Job, most: float) -> Iterator[CellResult]:
        workers = self._workers

        def fits(batch: CellBatch) -> bool:
            busy = [worker.batch for worker in workers if worker.batch]
            return not busy or sum(map(memory, [*busy, batch])) <= most

        try:
            while True:
                for worker in workers:
                    others = [other.in_view for other in workers if other is not worker]
                    if worker.batch is None and (batch := queue.take(worker.in_view, others, fits)):
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
        ours, theirs = multiprocessing.Pipe()
        arguments: tuple[Any, ...] = (theirs, job)
        if may_fork(job.threads, self._devices):
            context: BaseContext = multiprocessing.get_context("fork")
            # A fork has this process's ends of all pipes. While it holds one, a worker would outlive this process.
            arguments = (*arguments, [ours, *(worker.pipe for worker in self._workers)], self._sources)
        else:
            context = _context()
        process: BaseProcess = context.Process(target=_work, args=arguments, daemon=True)  # type: ignore[attr-defined]
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


def most_memory(batches: Sequence[CellBatch], jobs: int) -> float:
    """Return the bytes that workers take at the same time: one has the largest batch, and the others usual ones.

    Embedding and unembedding are the largest, and few: they need not be in view together.
    """
    sizes = list(map(memory, batches))
    return max(sizes, default=0) + (jobs - 1) * statistics.median(sizes or [0])


def may_fork(threads: int | None, devices: Collection[str]) -> bool:
    """Return whether forks of this process with this number of torch threads can verify batches on these devices.

    The locks of other threads of Python would stay locked. OpenMP does not survive a fork, but a worker with one thread
    never uses a second one. Nor does the context of an accelerator, which this process may have opened.
    """
    alone = sys.platform == "linux" and threading.active_count() == 1
    return alone and threads == 1 and set(devices) == {"cpu"}


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


def _work(
    pipe: Connection,
    job: Job,
    inherited: Sequence[Connection] = (),
    sources: Mapping[CheckpointRequest, Source] | None = None,
) -> None:
    """Verify batches until the parent process is gone. This runs in the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent process, which stops its workers
    for other in inherited:
        other.close()
    gc.freeze()  # what was imported before is in no garbage collection, of which each freed bridge needs one
    os.dup2(2, 1)  # what candidates print must not be mixed with the report
    sys.stdout = sys.stderr
    from cgverify.runs.execute.in_process import BatchVerifier

    def send(kind: str, content: Any) -> None:
        pipe.send((kind, content))

    if not job.warnings:
        hush_libraries()
    try:
        verifier = BatchVerifier(job, sources)
        while True:
            batch: CellBatch = pipe.recv()
            send("results", list(verifier.verify(batch, lambda cell: send("cell", cell))))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        send("error", worker_error(error))
