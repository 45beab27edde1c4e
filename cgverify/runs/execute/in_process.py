"""Verify batches in this process, whether it is the only one or one of several workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from cgverify.checkpoint.lookup import CheckpointRequest
from cgverify.checkpoint.resolve import resolve
from cgverify.checkpoint.source import Source
from cgverify.common.environment import pin_numerics
from cgverify.common.errors import CgverifyError
from cgverify.common.records import CellResult, Checkpoint, Verdict
from cgverify.observe.candidate import find_candidate
from cgverify.plan.batches import CellBatch, Job
from cgverify.verification.cell import Keep, keep_nothing, not_run
from cgverify.verification.checkpoint_cells import Progress, Reader, unwatched
from cgverify.verification.saved_tensors import with_evidence


class InProcess:
    """Runs batches one after another. See `cgverify.plan.batches.Executor`."""

    def __init__(self, sources: Mapping[CheckpointRequest, Source]) -> None:
        """
        Args:
            sources: the checkpoints that this process has opened already.
        """
        self._sources = sources

    def run(self, batches: Sequence[CellBatch], job: Job) -> Iterator[CellResult]:
        verifier = BatchVerifier(job, self._sources)
        for batch in batches:
            yield from verifier.verify(batch)


class BatchVerifier:
    """Verifies one batch after another, and keeps the checkpoint of the last batch open."""

    def __init__(self, job: Job, sources: Mapping[CheckpointRequest, Source] | None = None) -> None:
        """
        Args:
            sources: the checkpoints that this process has opened already.

        Raises:
            CandidateError: a candidate cannot be imported in this process.
        """
        pin_numerics(job.threads, job.allow)
        self._sources = sources or {}
        self._candidates = {name: find_candidate(name) for name in job.candidates}
        self._keep: Keep = (
            keep_nothing if job.folder is None else partial(with_evidence, folder=job.folder, kept=job.keep_tensors)
        )
        self._checkpoint: Checkpoint | None = None
        self._reader: Reader | str = ""
        """The reader of `_checkpoint`, or why it cannot be read."""

    def verify(self, batch: CellBatch, watch: Progress = unwatched) -> Iterator[CellResult]:
        """Yield the result of each cell of a batch."""
        if batch.checkpoint != self._checkpoint:
            self._checkpoint, self._reader = batch.checkpoint, ""  # free the old weights before new ones are read
            self._reader = self._open(batch.checkpoint)
        if isinstance(self._reader, str):
            yield from not_run(batch.cells, Verdict.ERROR, self._reader)
            return
        yield from self._reader.verify(batch.cells, self._candidates, self._keep, watch)

    def _open(self, checkpoint: Checkpoint) -> Reader | str:
        if checkpoint.problem:
            return checkpoint.problem
        key = checkpoint.asked, checkpoint.weights
        try:
            source = self._sources.get(key) or resolve(*key)
        except CgverifyError as error:
            return str(error)
        if source.digest != checkpoint.digest:
            return (
                f"{checkpoint.asked} has other weights here ({source.digest}) than where the run was planned "
                f"({checkpoint.digest}): bring the same checkpoint to every machine."
            )
        return Reader(source, checkpoint.prompt)
