"""The batches that wait for a worker, and what becomes of a batch whose worker is lost."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Sequence
from dataclasses import replace

from cgverify.common.records import Cell, CellResult
from cgverify.plan.batches import BatchWeights, CellBatch, lost
from cgverify.plan.cost.of_plan import seconds

MOST_LOST = 2
"""The number of workers that a cell, or a batch as a whole, may stop before it is an error."""

_log = logging.getLogger(__name__)


class BatchQueue:
    """Batches by the weights that they need in view."""

    def __init__(self, batches: Sequence[CellBatch]) -> None:
        self._batches: dict[BatchWeights, deque[CellBatch]] = {}
        for batch in batches:
            self._batches.setdefault(batch.in_view, deque()).append(batch)
        self._workers_lost = Counter[str]()
        """By cell id, or by batch if the worker was between cells."""

    def __bool__(self) -> bool:
        return bool(self._batches)

    def take(self, in_view: BatchWeights | None, others: Collection[BatchWeights | None]) -> CellBatch:
        """Remove and return the next batch for a worker.

        It needs the weights that the worker has in view; else weights that no other worker has in view, first of the
        checkpoint that the worker has open, since opening another means reading all of it; else it is the first batch.

        Args:
            in_view: the weights that the worker has in view.
            others: the weights that the other workers have in view.
        """
        if in_view not in self._batches:
            free = [weights for weights in self._batches if weights not in others]
            near = [weights for weights in free if in_view is not None and weights[:2] == in_view[:2]]
            in_view = next(iter(near or free or self._batches))
        waiting = self._batches[in_view]
        batch = waiting.popleft()
        if not waiting:
            del self._batches[in_view]
        return batch

    def put_back(self, batch: CellBatch) -> None:
        self._batches.setdefault(batch.in_view, deque()).appendleft(batch)

    def put_back_lost(self, batch: CellBatch, cell: Cell | None, reason: str) -> list[CellResult]:
        """Put back the batch of a lost worker, and return an error for each cell of it that is given up.

        A cell that `MOST_LOST` workers were lost at is given up, and the rest of the batch is put back without it. If
        they were lost before the first cell or after the last, the whole batch is given up.

        Args:
            cell: the cell that the worker was observing; None before the first cell and after the last.
            reason: why the worker is lost.
        """
        where = cell.component if cell else f"{batch.view}, as a whole"
        _log.error("A worker was lost at %s of %s (%s).", where, batch.checkpoint.name, reason)
        key = cell.id if cell else f"batch of {batch.cells[0].id}"
        self._workers_lost[key] += 1
        if self._workers_lost[key] < MOST_LOST:
            self.put_back(batch)
            return []
        given_up = (cell,) if cell else batch.cells
        if rest := tuple(other for other in batch.cells if other not in given_up):
            self.put_back(replace(batch, cells=rest))
        return lost(
            given_up, f"{MOST_LOST} workers were lost at it ({reason}): run it alone; if memory is short, lower --jobs."
        )


def longest_first(batches: Sequence[CellBatch]) -> list[CellBatch]:
    """Sort batches by the time that all batches with the same weights in view take together, the longest first.

    So no long one is left for the end, when other workers have nothing to do.
    """
    total: defaultdict[BatchWeights, float] = defaultdict(float)
    for batch in batches:
        total[batch.in_view] += seconds(batch)
    return sorted(batches, key=lambda batch: -total[batch.in_view])
