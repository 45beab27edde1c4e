"""Verify batches in this process, whether it is the only one or one of several workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cgverify.checkpoint.lookup import CheckpointRequest
from cgverify.checkpoint.resolve import resolve
from cgverify.checkpoint.source import Source
from cgverify.common.errors import CgverifyError
from cgverify.common.numerics import pin_numerics
from cgverify.common.records import CellResult, Checkpoint, Verdict
from cgverify.observe.candidate import find_candidate
from cgverify.oracle.shortcuts import Shortcuts
from cgverify.plan.batches import CellBatch, Job, Watch, unwatched
from cgverify.verification.checkpoint_verifier import CheckpointVerifier
from cgverify.verification.judge import Judge, uncompared
from cgverify.verification.saved_tensors import SavedTensors


class InProcess:
    """Runs batches one after another. See `cgverify.plan.batches.Executor`."""

    def __init__(self, sources: Mapping[CheckpointRequest, Source], watch: Watch = unwatched) -> None:
        """
        Args:
            sources: the checkpoints that this process has opened already.
        """
        self._sources, self._watch = sources, watch

    def run(self, batches: Sequence[CellBatch], job: Job) -> Iterator[CellResult]:
        verifier = BatchVerifier(job, self._sources)
        for batch in batches:
            yield from verifier.verify(batch, self._watch)


class BatchVerifier:
    """Verifies one batch after another, and keeps the checkpoint of the last batch open."""

    def __init__(self, job: Job, sources: Mapping[CheckpointRequest, Source] | None = None) -> None:
        """Raises CandidateError if a candidate cannot be imported in this process."""
        pin_numerics(job.threads, job.allow)
        self._shortcuts = Shortcuts(job.allow)
        self._sources = sources or {}
        self._candidates = {name: find_candidate(name) for name in job.candidates}
        self._judge = Judge(None if job.folder is None else SavedTensors(job.folder, job.keep_tensors))
        self._checkpoint: Checkpoint | None = None
        self._verifier: CheckpointVerifier | str = ""
        """The verifier of `_checkpoint`, or why it cannot be opened."""

    def verify(self, batch: CellBatch, watch: Watch = unwatched) -> Iterator[CellResult]:
        """Yield the result of each cell of a batch."""
        if batch.checkpoint != self._checkpoint:
            self._checkpoint, self._verifier = batch.checkpoint, ""  # free the old weights before new ones are read
            self._verifier = self._open(batch.checkpoint)
        if isinstance(self._verifier, str):
            yield from uncompared(batch.cells, Verdict.ERROR, self._verifier)
            return
        yield from self._verifier.verify(batch.cells, watch)

    def _open(self, checkpoint: Checkpoint) -> CheckpointVerifier | str:
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
        return CheckpointVerifier(source, self._candidates, checkpoint.prompt, self._judge, self._shortcuts)
