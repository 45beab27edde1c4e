"""The executor without processes: batches one after another, here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cgverify.checkpoint.lookup import CheckpointRequest
from cgverify.checkpoint.source import Source
from cgverify.common.records import CellResult
from cgverify.plan.batches import CellBatch, Job
from cgverify.runs.execute.worker import Worker


class InProcess:
    """See `cgverify.plan.batches.Executor`."""

    def __init__(self, sources: Mapping[CheckpointRequest, Source]) -> None:
        """
        Args:
            sources: checkpoints that are open already, so that none is opened twice.
        """
        self._sources = sources

    def run(self, batches: Sequence[CellBatch], job: Job) -> Iterator[CellResult]:
        worker = Worker(job, self._sources)
        for batch in batches:
            yield from worker.verify(batch)
