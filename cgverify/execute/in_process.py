"""The executor without processes: units one after another, here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cgverify.checkpoint.source import Source
from cgverify.execute.checkpoints import Asked
from cgverify.execute.work import Job, Unit
from cgverify.execute.worker import Worker
from cgverify.records import CellResult


class InProcess:
    """See `cgverify.execute.work.Executor`."""

    def __init__(self, sources: Mapping[Asked, Source]) -> None:
        """
        Args:
            sources: checkpoints that are open already, so that none is opened twice.
        """
        self._sources = sources

    def run(self, units: Sequence[Unit], job: Job) -> Iterator[CellResult]:
        worker = Worker(job, self._sources)
        for unit in units:
            yield from worker.verify(unit)
