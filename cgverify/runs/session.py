"""A prepared run -> findings: start or continue it, and keep each result in its run folder. Nothing is printed here."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cgverify.common.records import CellResult, Verdict
from cgverify.plan.batches import CellBatch, Executor, Watch, unfinished_batches, unwatched
from cgverify.runs.execute.dask import Dask
from cgverify.runs.execute.in_process import InProcess
from cgverify.runs.execute.processes import Processes
from cgverify.runs.folder import RunFolder
from cgverify.runs.prepare import PreparedRun
from cgverify.runs.reading import is_occupied, reconcile


def verify_batches(
    prepared: PreparedRun, batches: Sequence[CellBatch], folder: Path | None = None, watch: Watch = unwatched
) -> Iterator[CellResult]:
    """Verify batches of a run on the executor that its options choose.

    Args:
        folder: the run folder; None keeps no tensors.
        watch: called with each cell that is observed, but not for those of a Dask cluster.
    """
    options = prepared.options
    executor: Executor
    if options.scheduler is not None:
        executor = Dask(options.scheduler)
    elif prepared.jobs > 1:
        executor = Processes(prepared.jobs, prepared.found.sources, watch)
    else:
        executor = InProcess(prepared.found.sources, watch)
    return executor.run(batches, prepared.job(folder))


@dataclass
class RunSession:
    """A run in progress: its finished cells, and the folder that keeps them."""

    prepared: PreparedRun
    folder: RunFolder
    results: dict[str, CellResult] = field(default_factory=dict)
    """The result that counts for each finished cell, by cell id."""

    @classmethod
    def start(cls, prepared: PreparedRun, path: Path) -> RunSession:
        """Start a new run in a folder; see `RunFolder.create`."""
        return cls(prepared, RunFolder.create(path, prepared.run, prepared.plan))

    @classmethod
    def resume(cls, prepared: PreparedRun, path: Path) -> RunSession:
        """Continue the run in a folder, see `RunFolder.resume`, or start a new one if it is empty or missing."""
        if not is_occupied(path):
            return cls.start(prepared, path)
        folder, finished = RunFolder.resume(path, prepared.run, prepared.plan)
        # A cell that is no longer planned was the error cell of a checkpoint that is available now.
        planned = {cell.id for cell in prepared.cells}
        return cls(prepared, folder, {result.cell.id: result for result in finished if result.cell.id in planned})

    @classmethod
    def rerun_failed(cls, prepared: PreparedRun, path: Path) -> RunSession:
        """Continue the run in a folder without its failures and errors, so that those cells are run again."""
        session = cls.resume(prepared, path)
        failed = [
            result.cell
            for result in session.results.values()
            if result.verdict.fails or result.verdict is Verdict.ERROR
        ]
        session.folder.drop(failed)
        for cell in failed:
            del session.results[cell.id]
        return session

    @property
    def remaining(self) -> list[CellBatch]:
        """The batches with a cell that is not finished. A cell with an error is not finished."""
        finished = {cell for cell, result in self.results.items() if result.verdict is not Verdict.ERROR}
        return unfinished_batches(self.prepared.batches, finished)

    @property
    def ordered(self) -> list[CellResult]:
        """The results of the finished cells, in plan order."""
        return [self.results[cell.id] for cell in self.prepared.cells if cell.id in self.results]

    def carry_out(self, deadline: float | None = None, watch: Watch = unwatched) -> Generator[CellResult, None, None]:
        """Start to verify the remaining batches, and return each result after it is written to the folder.

        Local worker processes start at once. A batch that was interrupted is run whole again, and a result that is
        already written is not written twice.

        Args:
            deadline: a time of `time.monotonic()`. No result is taken after it.
            watch: see `verify_batches`.

        Raises:
            StorageError: the folder cannot be written any longer.
        """
        return self._kept(verify_batches(self.prepared, self.remaining, self.folder.path, watch), deadline)

    def _kept(self, results: Iterator[CellResult], deadline: float | None) -> Generator[CellResult, None, None]:
        for result in results:
            before = self.results.get(result.cell.id)
            counts = result if before is None else reconcile(before, result)
            if counts is not before:
                self.folder.append(result)
                self.results[result.cell.id] = counts
            yield counts
            if deadline is not None and time.monotonic() > deadline:
                return
