"""The estimated cost of a plan, batch by batch, for `sweep --dry-run` and for executors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cgverify.checkpoint import names
from cgverify.plan.batches import CellBatch
from cgverify.plan.cells import IN_TURN
from cgverify.plan.cost.memory import peak_bytes, weights_in_view
from cgverify.plan.cost.time import seconds_of


@dataclass(frozen=True)
class Cost:
    """The cost of a plan, on the machine of the constants in `cgverify.plan.cost.time`."""

    seconds: float
    """The time of all batches, one after another."""
    longest: float
    """The time of the largest batch: more workers do not shorten it."""
    read_bytes: int
    """The bytes of weights in float32, if each view is read once."""
    unknown: tuple[str, ...]
    """Checkpoints whose shape is unknown here."""


def cost(batches: Iterable[CellBatch]) -> Cost:
    """Return the cost of all batches together."""
    planned = list(batches)
    each = [seconds(batch) for batch in planned]
    views = {batch.in_view: parameters(batch) for batch in planned}
    unknown = dict.fromkeys(batch.checkpoint.asked for batch in planned if not batch.checkpoint.n_layers)
    return Cost(sum(each), max(each, default=0.0), 4 * sum(views.values()), tuple(unknown))


def seconds(batch: CellBatch) -> float:
    return seconds_of(batch.checkpoint, batch.cells)


def memory(batch: CellBatch) -> int:
    """Return the bytes that a process takes for a batch, with weights in float32."""
    return peak_bytes(batch.checkpoint, batch.cells)


def parameters(batch: CellBatch) -> int:
    """Return the number of weights in view of a batch. A prompt goes through all views of the model in turn."""
    if batch.view == IN_TURN:
        return names.parameters(batch.checkpoint)
    return weights_in_view(batch.checkpoint, batch.cells[0])
