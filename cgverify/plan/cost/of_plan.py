"""The estimated cost of a plan, batch by batch, for `sweep --dry-run` and for executors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cgverify.checkpoint import names
from cgverify.plan.batches import CellBatch
from cgverify.plan.cells import IN_TURN
from cgverify.plan.cost.memory import peak_bytes, weights_in_view
from cgverify.plan.cost.time import AS_FITTED, Speed, seconds_of


@dataclass(frozen=True)
class Cost:
    """The cost of a plan. Times are of batches on the CPU: other devices are not estimated."""

    seconds: float
    """The time of all batches, one after another."""
    longest: float
    """The time of the largest batch: more workers do not shorten it."""
    read_bytes: int
    """The bytes of weights in float32, if each view is read once."""
    unknown: tuple[str, ...]
    """Checkpoints whose shape is unknown here."""
    untimed: tuple[str, ...]
    """Devices whose time is not counted."""


def cost(batches: Iterable[CellBatch], speed: Speed = AS_FITTED) -> Cost:
    """Return the cost of all batches together.

    Args:
        speed: see `cgverify.plan.cost.time.measured_speed`.
    """
    planned = list(batches)
    each = [seconds(batch, speed) for batch in planned if batch.device == "cpu"]
    views = {batch.in_view: parameters(batch) for batch in planned}
    unknown = dict.fromkeys(batch.checkpoint.asked for batch in planned if not batch.checkpoint.n_layers)
    untimed = dict.fromkeys(batch.device for batch in planned if batch.device != "cpu")
    return Cost(sum(each), max(each, default=0.0), 4 * sum(views.values()), tuple(unknown), tuple(untimed))


def seconds(batch: CellBatch, speed: Speed = AS_FITTED) -> float:
    """Return the seconds of a batch, if on the CPU; by default on the machine of the constants."""
    return seconds_of(batch.checkpoint, batch.cells, speed)


def memory(batch: CellBatch) -> int:
    """Return the bytes that a process takes for a batch, with weights in float32."""
    return peak_bytes(batch.checkpoint, batch.cells)


def parameters(batch: CellBatch) -> int:
    """Return the number of weights in view of a batch. A prompt goes through all views of the model in turn."""
    if batch.view == IN_TURN:
        return names.parameters(batch.checkpoint)
    return weights_in_view(batch.checkpoint, batch.cells[0])
