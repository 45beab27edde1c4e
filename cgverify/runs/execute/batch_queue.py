"""The batches that wait for a worker, and what becomes of a batch whose worker is lost."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from cgverify.common.records import Cell, CellResult
from cgverify.plan.batches import BatchWeights, CellBatch, lost
from cgverify.plan.cost.of_plan import seconds

MOST_LOST = 2
"""The number of workers that may be lost at a cell, or at a batch as a whole, before it is an error."""

_log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class Worker:
    """A worker process, as the process that gives it batches knows it."""

    batch: CellBatch | None = None
    cell: Cell | None = None
    """The cell that it observes; None before the first cell of its batch and after the last."""
    in_view: BatchWeights | None = None
    """The weights of its last batch, which it keeps in memory."""

    def start(self, batch: CellBatch) -> None:
        self.batch, self.cell, self.in_view = batch, None, batch.in_view


class BatchQueue:
    """Batches by the weights that they need in view."""

    def __init__(self, batches: Sequence[CellBatch]) -> None:
        self._batches: dict[BatchWeights, list[CellBatch]] = {}
        for batch in batches:
            self._batches.setdefault(batch.in_view, []).append(batch)
        self._lost_at = Counter[str]()
        """The number of workers lost, by cell id or by the first cell id of a batch."""

    def __bool__(self) -> bool:
        return bool(self._batches)

    def take(
        self,
        in_view: BatchWeights | None,
        others: Collection[BatchWeights | None],
        fits: Callable[[CellBatch], bool] = lambda _: True,
    ) -> CellBatch | None:
        """Remove and return the next batch for a worker; None if there is none that fits.

        First come batches for the weights that the worker has in view, then those for weights that no other worker has
        in view, among them first those of the checkpoint that the worker has open, since opening one reads all of it.

        Args:
            in_view: the weights that the worker has in view.
            others: the weights that the other workers have in view.
            fits: whether the worker has the memory for a batch.
        """

        def order(weights: BatchWeights) -> tuple[bool, bool, bool]:
            shared = weights in others
            elsewhere = in_view is None or weights[:2] != in_view[:2]
            return weights != in_view, shared, elsewhere and not shared

        for weights in sorted(self._batches, key=order):
            for batch in self._batches[weights]:
                if fits(batch):
                    self._batches[weights].remove(batch)
                    if not self._batches[weights]:
                        del self._batches[weights]
                    return batch
        return None

    def put_back(self, batch: CellBatch) -> None:
        self._batches.setdefault(batch.in_view, []).insert(0, batch)

    def put_back_lost(self, batch: CellBatch, cell: Cell | None, reason: str) -> list[CellResult]:
        """Put back the batch of a lost worker, and return an error for each of its cells that is given up.

        A cell at which `MOST_LOST` workers were lost is given up, and the rest of the batch is put back. The whole
        batch is given up if they were lost before its first cell or after its last.

        Args:
            cell: the cell that the worker was observing; None before the first cell and after the last.
            reason: why the worker is lost.
        """
        where = cell.component if cell else f"{batch.view}, as a whole"
        _log.error("A worker was lost at %s of %s (%s).", where, batch.checkpoint.name, reason)
        key = cell.id if cell else f"batch of {batch.cells[0].id}"
        self._lost_at[key] += 1
        if self._lost_at[key] < MOST_LOST:
            self.put_back(batch)
            return []
        given_up = (cell,) if cell else batch.cells
        if rest := tuple(other for other in batch.cells if other not in given_up):
            self.put_back(replace(batch, cells=rest))
        return lost(
            given_up, f"{MOST_LOST} workers were lost at it ({reason}): run it alone; if memory is short, lower --jobs."
        )


def longest_first(batches: Sequence[CellBatch]) -> list[CellBatch]:
    """Sort batches by the time that all batches with the same weights take together, the longest first.

    A long batch at the end would leave the other workers without work.
    """
    total: defaultdict[BatchWeights, float] = defaultdict(float)
    for batch in batches:
        total[batch.in_view] += seconds(batch)
    return sorted(batches, key=lambda batch: -total[batch.in_view])
