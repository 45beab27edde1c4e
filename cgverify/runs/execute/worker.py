"""The worker that verifies batches in any process: it loads the weights and bridges and keeps them while in use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


class Worker:
    """Verifies batches of one run after another, with the checkpoint of the last one at hand."""

    def __init__(self, job: Job, sources: Mapping[CheckpointRequest, Source] | None = None) -> None:
        """
        Args:
            sources: checkpoints that are open in this process already.

        Raises:
            CandidateError: a candidate that cannot be imported here.
        """
        pin_numerics(job.threads, job.allow)
        self._sources = sources or {}
        self._candidates = {name: find_candidate(name) for name in job.candidates}
        self._keep: Keep = (
            keep_nothing if job.folder is None else partial(with_evidence, folder=job.folder, kept=job.keep_tensors)
        )
        self._checkpoint: Checkpoint | None = None
        self._reader: Reader | str = ""

    def verify(self, batch: CellBatch, watch: Progress = unwatched) -> Iterator[CellResult]:
        """The results of a batch's cells."""
        if batch.checkpoint != self._checkpoint:
            self._checkpoint, self._reader = batch.checkpoint, ""  # let go of one window before the next is opened
            self._reader = self._open(batch.checkpoint)
        if isinstance(self._reader, str):
            yield from not_run(batch.cells, Verdict.ERROR, self._reader)
            return
        yield from self._reader.verify(batch.cells, self._candidates, self._keep, watch)

    def _open(self, checkpoint: Checkpoint) -> Reader | str:
        """A checkpoint's reader, or why there is none."""
        asked = checkpoint.asked, checkpoint.weights
        if checkpoint.problem:
            return checkpoint.problem
        try:
            source = self._sources.get(asked) or resolve(*asked)
        except CgverifyError as error:
            return str(error)
        if source.digest != checkpoint.digest:
            return (
                f"{checkpoint.asked} has other weights here ({source.digest}) than where the run was planned "
                f"({checkpoint.digest}): bring the same checkpoint to every machine."
            )
        return Reader(source, checkpoint.prompt)
