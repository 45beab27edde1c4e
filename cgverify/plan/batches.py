"""What is handed to an executor, and what an executor is.

Work travels as names and settings, never as tensors: whoever verifies a batch reads the weights where they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Protocol

from cgverify.common.records import Cell, CellResult, Checkpoint, Finding, Verdict, WeightsView
from cgverify.plan.cells import IN_TURN, weights_view

BatchWeights = tuple[str, str, WeightsView]
"""A checkpoint by name and digest, and what is in view of it."""


@dataclass(frozen=True)
class CellBatch:
    """Cells of one checkpoint that share a view of its weights in one setting, and one reference.

    They are observed and judged together, so a batch is run whole or not at all: products of float64 may differ in the
    last bit by what they are computed beside, and the same batch gives the same figures wherever it runs.
    """

    checkpoint: Checkpoint
    view: WeightsView
    dtype: str
    device: str
    cells: tuple[Cell, ...]

    @property
    def in_view(self) -> BatchWeights:
        """What must be read: batches that have it in common are best run by one worker, one after another."""
        return self.checkpoint.name, self.checkpoint.digest, self.view


@dataclass(frozen=True)
class Job:
    """What every worker of a run must know."""

    candidates: tuple[str, ...]
    """The `--bridge` names that cells have."""
    threads: int
    """Of torch, in each worker."""
    allow: tuple[str, ...] = ()
    """Shortcuts of products that are left on."""
    folder: Path | None = None
    """The run folder, where tensors are kept; None keeps none."""
    keep_tensors: str = "none"
    warnings: bool = False
    """Whether libraries may say what is no concern of the user's."""


class Executor(Protocol):
    """Carries out batches."""

    def run(self, batches: Sequence[CellBatch], job: Job) -> Iterator[CellResult]:
        """Each cell's result as it is found; every cell of every batch exactly once.

        What goes wrong with a cell is a result (`error`). Closing the iterator stops the work.

        Raises:
            CgverifyError: what concerns the whole run, such as a run folder that cannot be written.
        """
        ...


def batches(cells: Sequence[Cell], checkpoints: Iterable[Checkpoint]) -> list[CellBatch]:
    """The batches of a plan, in the order in which they are best run.

    Args:
        checkpoints: those that the cells are of.
    """
    known = {(checkpoint.name, checkpoint.digest): checkpoint for checkpoint in checkpoints}
    return [
        CellBatch(known[own[0].model, own[0].weights], weights_view(own[0]), own[0].dtype, own[0].device, own)
        for own in group_into_batches(cells)
    ]


def group_into_batches(cells: Sequence[Cell]) -> list[tuple[Cell, ...]]:
    """The cells of each batch: a checkpoint after another, a view of its weights after another, in it every setting.

    A prompt's cells of one setting are one batch, since its hidden states go from view to view.
    """
    order = {key: place for place, key in enumerate(dict.fromkeys((cell.model, cell.weights) for cell in cells))}

    def turn(cell: Cell) -> tuple[object, ...]:
        layer = -1 if cell.kind == "embed" else 1 << 30 if cell.layer is None else cell.layer
        end = "" if cell.layer is not None else cell.kind
        if cell.prompt:
            layer, end = 1 << 30, IN_TURN
        return (order[cell.model, cell.weights], layer, end, cell.dtype, cell.device, str(cell.rotary_dim))

    return [tuple(own) for _, own in groupby(sorted(cells, key=turn), key=turn)]


def unfinished_batches(planned: Sequence[CellBatch], finished: set[str]) -> list[CellBatch]:
    """The batches of which not every cell is finished, whole.

    Args:
        finished: ids of cells.
    """
    return [batch for batch in planned if not all(cell.id in finished for cell in batch.cells)]


def lost(cells: Iterable[Cell], reason: str) -> list[CellResult]:
    """Errors for cells whose worker was lost."""
    finding = Finding(step="", tap="", stage="", verdict=Verdict.ERROR, message=reason)
    return [CellResult(cell=cell, findings=(finding,), seconds=0.0) for cell in cells]
