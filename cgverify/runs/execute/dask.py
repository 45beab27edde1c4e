"""A Dask cluster, whose workers verify batches.

The driver deals batches out itself, one at a time to each worker, by what the worker has in view: so a view is read by
one worker while it lasts, layers spread, and neither scheduler nor driver holds more than one batch a worker. Dask
carries batches there and results back, keeps the workers alive, and says who came and went.

Each worker is first asked who it is: other versions than the driver's would find other things, and get no work. Before
a cell is observed, its worker tells the scheduler; so of a worker that dies it is known what it died of, and the same
becomes of its batch as in `cgverify.runs.execute.processes`.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cgverify.common import environment
from cgverify.common.errors import CgverifyError
from cgverify.common.records import Cell, CellResult
from cgverify.plan.batches import BatchWeights, CellBatch, Job, lost
from cgverify.runs.execute import dask_worker
from cgverify.runs.execute.cluster import Cluster, local_cluster
from cgverify.runs.execute.dask_worker import BEFORE_OR_AFTER, MEMORY, Introduction, Raised
from cgverify.runs.execute.processes import Queue, give_back

CONNECT = 10.0
"""Seconds in which a scheduler must answer."""

PATIENCE = 300.0
"""Seconds that are waited for a worker where there is none."""

GLANCE = 5.0
"""Seconds without news after which the scheduler is asked who is there."""

STILLBORN = 8
"""How many workers in a row may die before their first batch."""

_log = logging.getLogger(__name__)


@dataclass
class WorkerHandle:
    """A worker, as the driver sees it."""

    address: str
    job: Job
    """The run's; without tensors where the run folder cannot be seen."""
    future: Any = None
    """Of its introduction at first, then of its batch."""
    ready: bool = False
    """It has introduced itself and may be given batches."""
    memory: float | None = None
    batch: CellBatch | None = None
    number: int = 0
    """Of the batch."""
    at: Cell | None = None
    """The cell that it observes; None before the first of its batch and after the last."""
    seen: BatchWeights | None = None
    """What it has in view since its last batch."""


Weigh = Callable[[CellBatch], float]
"""What a batch takes."""


class Dask:
    """See `cgverify.plan.batches.Executor`."""

    def __init__(self, cluster: Cluster, memory: Weigh, seconds: Weigh) -> None:
        """
        Args:
            memory: bytes that a batch takes, about.
            seconds: the time, in any measure that is the same for all batches.
        """
        self._cluster, self._memory, self._seconds = cluster, memory, seconds

    def run(self, batches: Sequence[CellBatch], job: Job) -> Iterator[CellResult]:
        """Raises CgverifyError as well where the scheduler cannot be reached, or is lost, or has no workers."""
        if not batches:
            return
        import distributed

        away = self._cluster.scheduler is not None
        told = replace(job, folder=job.folder and job.folder.resolve(), warnings=job.warnings or away)
        with contextlib.ExitStack() as held:
            if not job.warnings:
                held.enter_context(_quiet())
            address = self._cluster.scheduler or held.enter_context(local_cluster(self._cluster.workers, told))
            try:
                client = held.enter_context(distributed.Client(address, timeout=CONNECT, set_as_default=False))
            except OSError as error:
                raise CgverifyError(f"No Dask scheduler answers at {address}: start one, `dask scheduler`.") from error
            ordered = [_findable(batch) for batch in longest_first(batches, self._seconds)]
            yield from _Driver(client, ordered, told, self._memory).results()


class _Driver:
    """One run on one cluster."""

    def __init__(self, client: Any, batches: Sequence[CellBatch], job: Job, memory: Weigh) -> None:
        self._client, self._job, self._memory = client, job, memory
        self._queue, self._deaths = Queue(batches), Counter[str]()
        self._hands: dict[str, WorkerHandle] = {}
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._run = f"cgverify-{uuid.uuid4().hex[:8]}"
        self._given = self._stillborn = 0
        self._versions = environment.versions()
        self._numerics = environment.pin_numerics(job.threads, job.allow)
        self._refused: dict[str, str] = {}
        """Workers that get no work, with the reason."""
        self._missed: set[str] = set()
        self._told: set[str] = set()
        self._last_seen = time.monotonic()

    @contextlib.contextmanager
    def _events(self) -> Iterator[None]:
        """Hear who comes and goes, and which cells are at work on."""
        topics = {"all": "worker", self._run: "at"}
        for topic, what in topics.items():
            self._client.subscribe_topic(topic, lambda event, what=what: self._inbox.put((what, event[1])))
        try:
            yield
        finally:
            for topic in topics if self._client.status == "running" else ():
                self._client.unsubscribe_topic(topic)

    def results(self) -> Iterator[CellResult]:
        with self._events():
            yield from self._results()

    def _results(self) -> Iterator[CellResult]:
        self._glance()
        while self._queue or any(hand.batch for hand in self._hands.values()):
            for hand in self._hands.values():
                if hand.ready and hand.batch is None:
                    self._give(hand)
            yield from self._too_large()
            try:
                what, told = self._inbox.get(timeout=GLANCE)
            except queue.Empty:
                self._require_hands()
                self._glance()
                continue
            if what == "at":
                self._observes(*told)
            elif what == "worker":
                yield from self._moved(told)
            else:
                yield from self._done(*told)

    def _give(self, hand: WorkerHandle) -> None:
        """The next batch that a worker has the memory for."""
        others = {other.seen for other in self._hands.values() if other is not hand}
        too_large = []
        while self._queue:
            batch = self._queue.take(hand.seen, others)
            if hand.memory is None or self._memory(batch) <= hand.memory:
                self._given += 1
                hand.batch, hand.number, hand.at, hand.seen = batch, self._given, None, batch.in_view
                resources = {} if hand.memory is None else {MEMORY: self._memory(batch)}
                self._submit(hand, dask_worker.verify, batch, hand.job, self._run, hand.number, resources=resources)
                break
            too_large.append(batch)
        for batch in reversed(too_large):
            self._queue.give_back(batch)

    def _submit(self, hand: WorkerHandle, function: Any, *arguments: Any, resources: dict[str, float]) -> None:
        """Ask something of one worker alone."""
        future = hand.future = self._client.submit(
            function, *arguments, workers=[hand.address], allow_other_workers=False, pure=False, resources=resources
        )
        future.add_done_callback(lambda done: self._inbox.put(("done", (hand, done))))

    def _observes(self, number: int, place: int) -> None:
        for hand in self._hands.values():
            if hand.batch is not None and hand.number == number:
                hand.at = None if place == BEFORE_OR_AFTER else hand.batch.cells[place]

    def _moved(self, event: Any) -> list[CellResult]:
        """A worker that came or went."""
        if event.get("action") == "add-worker":
            self._came(event["worker"])
        elif event.get("action") == "remove-worker":
            return self._went(event["worker"], asked=bool(event.get("expected")))
        return []

    def _came(self, address: str) -> None:
        if address not in self._hands:
            hand = self._hands[address] = WorkerHandle(address, self._job)
            self._submit(hand, dask_worker.introduce, self._job, self._versions, resources={})

    def _went(self, address: str, *, asked: bool) -> list[CellResult]:
        """Give a lost worker's batch back; one that was asked to leave did not die of it."""
        hand = self._hands.pop(address, None)
        refused = self._refused.pop(address, None)
        if hand is None:
            return []
        self._last_seen = time.monotonic()
        hand.future.release()
        if not (hand.ready or refused or asked):
            self._stillborn += 1
        if self._stillborn >= STILLBORN:
            raise CgverifyError(f"{STILLBORN} workers died before their first batch, {address} the last: see its log.")
        if hand.batch is None:
            return []
        if asked:
            self._queue.give_back(hand.batch)
            return []
        return give_back(hand.batch, hand.at, f"{address} is lost", self._queue, self._deaths)

    def _done(self, hand: WorkerHandle, future: Any) -> list[CellResult]:
        """What a worker was asked for is there, or failed."""
        if future is not hand.future or self._hands.get(hand.address) is not hand:
            return []  # it was lost in the meantime, and its batch was given back
        if future.status == "cancelled":
            raise self._lost_scheduler()
        if future.status == "error":
            return self._failed(hand, future.exception())
        try:
            found = future.result(timeout=GLANCE)
        except Exception as error:  # as a rule, its worker was lost with the result
            return self._failed(hand, error)
        future.release()
        if isinstance(found, Raised):
            raised = CgverifyError(f"{found.sentence} (on {hand.address})")
            raised.exit_code = found.exit_code
            raise raised
        if isinstance(found, Introduction):
            self._welcome(hand, found)
            return []
        hand.batch = hand.at = None
        results: list[CellResult] = found
        return results

    def _failed(self, hand: WorkerHandle, error: Any) -> list[CellResult]:
        """What was asked of a worker came to nothing."""
        from distributed.scheduler import KilledWorker

        if isinstance(error, KilledWorker):  # the scheduler will say so
            return []
        if hand.batch is None:
            self._refuse(hand, f"cannot take part: {type(error).__name__}: {error}")
            return []
        batch, hand.batch = hand.batch, None
        return give_back(batch, hand.at, f"{type(error).__name__} on {hand.address}", self._queue, self._deaths)

    def _welcome(self, hand: WorkerHandle, told: Introduction) -> None:
        ours = self._versions
        for package in ours:
            if told.versions.get(package) != ours[package]:
                theirs = told.versions.get(package, "not installed")
                self._refuse(hand, f"has {package} {theirs}, and the driver {ours[package]}: install the same")
                return
        for flag in self._numerics:
            if told.numerics.get(flag) != self._numerics[flag]:
                self._tell(
                    f"Some workers have {flag} {told.numerics.get(flag)}, and the driver {self._numerics[flag]}: "
                    "verdicts hold there too, but last digits may differ from worker to worker."
                )
        self._stillborn = 0
        hand.ready, hand.memory = True, told.memory
        if not told.sees_folder and self._job.keep_tensors != "none":
            hand.job = replace(self._job, folder=None)
            self._tell(
                "Some workers do not see the run folder, and keep no tensors of failures: to have them, give --output "
                "on a disk that all share."
            )

    def _refuse(self, hand: WorkerHandle, reason: str) -> None:
        self._refused[hand.address] = reason
        _log.error("The worker %s %s.", hand.address, reason)

    def _tell(self, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            _log.error(sentence)

    def _too_large(self) -> list[CellResult]:
        """Errors for what no worker has the memory for, once nobody is at work or about to come."""
        hands = [hand for address, hand in self._hands.items() if address not in self._refused]
        if not hands or not all(hand.ready and hand.batch is None for hand in hands):
            return []
        results: list[CellResult] = []
        while self._queue:
            batch = self._queue.take(None, ())
            needed = f"it takes about {self._memory(batch) / 1e9:.1f} GB, and no worker declares so much"
            results += lost(batch.cells, f"{needed}: start larger ones, or give fewer --jobs.")
        return results

    def _require_hands(self) -> None:
        """Raise CgverifyError where nobody can work, and nobody came for long."""
        if any(address not in self._refused for address in self._hands):
            self._last_seen = time.monotonic()
        elif self._refused:
            address, reason = next(iter(self._refused.items()))
            raise CgverifyError(f"No worker is left: {address} {reason}.")
        elif time.monotonic() - self._last_seen > PATIENCE:
            raise CgverifyError(
                f"The scheduler has had no worker for {PATIENCE:.0f} s: start some, `dask worker`. What arrived is "
                "kept, and --resume goes on."
            )

    def _glance(self) -> None:
        """Who is there: the scheduler's events may be late, or have been lost with a connection."""
        if self._client.status != "running":
            raise self._lost_scheduler()
        try:
            there = set(self._client.scheduler_info()["workers"])
        except OSError as error:
            raise self._lost_scheduler() from error
        for address in there:
            self._came(address)
        gone = set(self._hands) - there
        for address in gone & self._missed:  # news of it may be on the way: only at the second glance
            self._inbox.put(("worker", {"action": "remove-worker", "worker": address}))
        self._missed = gone

    def _lost_scheduler(self) -> CgverifyError:
        return CgverifyError("The Dask scheduler is gone: what arrived is kept, start it again, and --resume goes on.")


def longest_first(batches: Sequence[CellBatch], seconds: Weigh) -> list[CellBatch]:
    """By views, the ones that take longest first, so that none of them is left over at the end."""
    taken: dict[BatchWeights, float] = {}
    for batch in batches:
        taken[batch.in_view] = taken.get(batch.in_view, 0) + seconds(batch)
    return sorted(batches, key=lambda batch: -taken[batch.in_view])


def _findable(batch: CellBatch) -> CellBatch:
    """With the whole path of a checkpoint in a folder: a worker may stand elsewhere."""
    asked = Path(batch.checkpoint.asked)
    if not asked.is_dir():
        return batch
    return replace(batch, checkpoint=batch.checkpoint.model_copy(update={"asked": str(asked.resolve())}))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What Dask has to say of lost workers is said here, in a sentence."""
    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.client", "distributed.scheduler")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
