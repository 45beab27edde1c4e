"""Batches of cells, and the executors that verify them.

A batch has names and settings and no tensors: the worker that verifies it reads the weights itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Protocol

from cgverify.common.records import Cell, CellResult, Checkpoint, Finding, Verdict, WeightsView
from cgverify.plan.cells import IN_TURN, weights_view

BatchWeights = tuple[str, str, WeightsView]
"""A checkpoint's name and digest, and the view of its weights."""

Watch = Callable[[Cell | None], None]
"""Called with each cell before it is observed, and with None before the observed cells are judged."""


def unwatched(_: Cell | None) -> None:
    """A `Watch` that does nothing."""


@dataclass(frozen=True)
class CellBatch:
    """The cells of one checkpoint that share a view of its weights in one setting, and the reference.

    They are judged together, so a batch is run whole or not at all: a float64 product may differ in the last bit if
    it is computed together with other rows. So a batch gives the same figures on every executor.
    """

    checkpoint: Checkpoint
    view: WeightsView
    dtype: str
    device: str
    cells: tuple[Cell, ...]

    @property
    def in_view(self) -> BatchWeights:
        """The weights that must be read. One worker should run all batches with the same ones."""
        return self.checkpoint.name, self.checkpoint.digest, self.view


@dataclass(frozen=True)
class Job:
    """The settings that every worker of a run needs."""

    candidates: tuple[str, ...]
    """The `--bridge` names in cells."""
    threads: int
    """torch threads in each worker."""
    allow: tuple[str, ...] = ()
    """Shortcuts of matrix products that stay switched on."""
    folder: Path | None = None
    """The run folder, in which tensors are kept; None keeps none."""
    keep_tensors: str = "none"
    warnings: bool = False
    """Whether warnings of libraries are shown."""


class Executor(Protocol):
    """Verifies batches."""

    def run(self, batches: Sequence[CellBatch], job: Job) -> Iterator[CellResult]:
        """Yield the result of each cell of each batch exactly once, in any order.

        A fault of one cell is a result (`error`). Closing the iterator stops the work.

        Raises:
            CgverifyError: the whole run cannot go on, for example because the run folder cannot be written.
        """
        ...


def batches(cells: Sequence[Cell], checkpoints: Iterable[Checkpoint]) -> list[CellBatch]:
    """Return the batches of a plan, in the best order to run them.

    Args:
        checkpoints: the checkpoints of the cells.
    """
    known = {(checkpoint.name, checkpoint.digest): checkpoint for checkpoint in checkpoints}
    return [
        CellBatch(known[own[0].model, own[0].weights], weights_view(own[0]), own[0].dtype, own[0].device, own)
        for own in group_into_batches(cells)
    ]


def group_into_batches(cells: Sequence[Cell]) -> list[tuple[Cell, ...]]:
    """Return the cells of each batch, ordered by checkpoint, then by view of its weights, then by setting.

    A prompt's cells of one setting are one batch, since its hidden states go from view to view.
    """
    order = {key: place for place, key in enumerate(dict.fromkeys((cell.model, cell.weights) for cell in cells))}

    def turn(cell: Cell) -> tuple[object, ...]:
        layer = -1 if cell.kind == "embed" else 1 << 30 if cell.layer is None else cell.layer
        end = "" if cell.layer is not None else cell.kind
        if cell.prompt:
            layer, end = 1 << 30, IN_TURN
        setting = cell.dtype, cell.device, str(cell.rotary_dim), cell.attention
        return (order[cell.model, cell.weights], layer, end, *setting)

    return [tuple(own) for _, own in groupby(sorted(cells, key=turn), key=turn)]


def unfinished_batches(planned: Sequence[CellBatch], finished: set[str]) -> list[CellBatch]:
    """Return each batch with a cell that is not finished, whole.

    Args:
        finished: ids of cells.
    """
    return [batch for batch in planned if not all(cell.id in finished for cell in batch.cells)]


def lost(cells: Iterable[Cell], reason: str) -> list[CellResult]:
    """Return errors for cells whose worker was lost."""
    finding = Finding(step="", tap="", stage="", verdict=Verdict.ERROR, message=reason)
    return [CellResult(cell=cell, findings=(finding,), seconds=0.0) for cell in cells]
