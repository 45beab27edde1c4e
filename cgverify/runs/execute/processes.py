"""Local processes, each of which verifies batches.

Workers are forked from a server that has imported torch and its company once, so that one that died is replaced in no
time. Each has a pipe of its own, on which a batch goes out; back come each cell before it is observed, so that it is
known what a worker died of, and at last the batch's results.

A worker that dies gives its batch back. A cell that two workers died of is an error, and the rest of its batch is run
without it; a batch that two workers died of before its first cell, or while they judged, is an error as a whole.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any

from cgverify.common.environment import hush_libraries
from cgverify.common.errors import CgverifyError
from cgverify.common.printable import said
from cgverify.common.records import Cell, CellResult
from cgverify.plan.batches import BatchWeights, CellBatch, Job, lost

TRIES = 2
"""How many workers may die of a cell."""

_log = logging.getLogger(__name__)


@dataclass
class WorkerHandle:
    """A worker, as its employer sees it."""

    process: ForkServerProcess
    pipe: Connection
    batch: CellBatch | None = None
    at: Cell | None = None
    """The cell that it observes; None before the first of its batch and after the last."""
    seen: BatchWeights | None = None
    """What it has in view since its last batch."""


class Processes:
    """See `cgverify.plan.batches.Executor`."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["cgverify.runs.execute.worker"])

    def run(self, batches: Sequence[CellBatch], job: Job) -> Iterator[CellResult]:
        queue, deaths = Queue(batches), Counter[str]()
        hands = [self._hire(job) for _ in range(min(self._jobs, len(batches)))]
        try:
            while queue or any(hand.batch for hand in hands):
                for hand in hands:
                    if hand.batch is None and queue:
                        _give(hand, queue.take(hand.seen, [other.seen for other in hands if other is not hand]))
                for ready in wait([hand.pipe for hand in hands if hand.batch]):
                    hand = next(hand for hand in hands if hand.pipe is ready)
                    try:
                        yield from _heard(hand, *hand.pipe.recv())
                    except (EOFError, OSError):
                        yield from handle_death(hand, queue, deaths)
                        hands[hands.index(hand)] = self._hire(job)
        finally:
            for hand in hands:
                hand.process.kill()
                hand.process.join()
                hand.pipe.close()

    def _hire(self, job: Job) -> WorkerHandle:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, job), daemon=True)
        process.start()
        theirs.close()  # so that the pipe ends when the worker does
        return WorkerHandle(process, ours)


class Queue:
    """Batches that wait, by what they need in view."""

    def __init__(self, batches: Sequence[CellBatch]) -> None:
        self._units: dict[BatchWeights, deque[CellBatch]] = {}
        for batch in batches:
            self._units.setdefault(batch.in_view, deque()).append(batch)

    def __bool__(self) -> bool:
        return bool(self._units)

    def take(self, seen: BatchWeights | None, others: Collection[BatchWeights | None]) -> CellBatch:
        """The next batch for a worker: of what it has in view, else of what no other has, else the first.

        Of what no other has, the checkpoint that it has open comes first: to open one is to read all of it.
        """
        if seen not in self._units:
            free = [view for view in self._units if view not in others]
            near = [view for view in free if seen is not None and view[:2] == seen[:2]]
            seen = next(iter(near or free or self._units))
        waiting = self._units[seen]
        batch = waiting.popleft()
        if not waiting:
            del self._units[seen]
        return batch

    def give_back(self, batch: CellBatch) -> None:
        self._units.setdefault(batch.in_view, deque()).appendleft(batch)


def _give(hand: WorkerHandle, batch: CellBatch) -> None:
    hand.batch, hand.at, hand.seen = batch, None, batch.in_view
    with contextlib.suppress(OSError):  # it died while it waited; its pipe says so when it is read
        hand.pipe.send(batch)


def _heard(hand: WorkerHandle, what: str, told: Any) -> list[CellResult]:
    """What a worker said: `at` a cell, `done` with results, or it `raised`."""
    if what == "at":
        hand.at = told
        return []
    if what == "raised":
        sentence, exit_code = told
        error = CgverifyError(sentence)
        error.exit_code = exit_code
        raise error
    hand.batch = None
    results: list[CellResult] = told
    return results


def handle_death(hand: WorkerHandle, queue: Queue, deaths: Counter[str]) -> list[CellResult]:
    """Give a dead worker's batch back, or what is left of it; returns errors for what was given up."""
    assert hand.batch is not None
    hand.process.join()
    code = hand.process.exitcode or 0
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"it exited with {code}"
    return give_back(hand.batch, hand.at, how, queue, deaths)


def give_back(batch: CellBatch, at: Cell | None, how: str, queue: Queue, deaths: Counter[str]) -> list[CellResult]:
    """A batch whose worker died goes back to the queue, without what two workers died of; returns errors for that.

    Args:
        at: the cell that was observed; None before the first and after the last.
        how: it died.
        deaths: so far, by cell or batch.
    """
    where = at.component if at else f"{batch.view}, as a whole"
    _log.error("A worker died at %s of %s (%s).", where, batch.checkpoint.name, how)
    key = at.id if at else batch.cells[0].id + " and its batch"
    deaths[key] += 1
    if deaths[key] < TRIES:
        queue.give_back(batch)
        return []
    given_up = (at,) if at else batch.cells
    rest = tuple(cell for cell in batch.cells if cell not in given_up)
    if rest:
        queue.give_back(replace(batch, cells=rest))
    return lost(given_up, f"{TRIES} workers died of it ({how}): run it alone; if it is memory, give fewer --jobs.")


def _serve(pipe: Connection, job: Job) -> None:
    """A worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its employer is interrupted, and lets it go
    os.dup2(2, 1)  # what candidates print must not stand in the report
    sys.stdout = sys.stderr
    from cgverify.runs.execute.worker import Worker

    if not job.warnings:
        hush_libraries()
    try:
        worker = Worker(job)
        while True:
            batch: CellBatch = pipe.recv()
            pipe.send(("done", list(worker.verify(batch, lambda cell: pipe.send(("at", cell))))))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # its employer is gone
    except CgverifyError as error:
        pipe.send(("raised", (str(error), error.exit_code)))
    except Exception as error:
        pipe.send(("raised", (f"{type(error).__name__}: {said(error)}", CgverifyError.exit_code)))
