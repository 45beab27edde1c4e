"""What a plan costs, batch by batch, before anything is read: for `sweep --dry-run` and for executors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from cgverify.checkpoint.names import Architecture
from cgverify.common.records import Checkpoint
from cgverify.plan.batches import CellBatch
from cgverify.plan.cells import IN_TURN
from cgverify.plan.cost.estimate import estimate, seconds_of, weights_in_view

NARROWEST_HEAD = 64
"""Of the checkpoints on the hub; a plan does not know the number of heads, on which scores depend."""


@dataclass(frozen=True)
class Cost:
    """Of a plan, on the machine of the constants in `cgverify.plan.cost.estimate`."""

    seconds: float
    """All batches one after another."""
    longest: float
    """The largest batch's: no number of workers is done sooner."""
    read_bytes: int
    """Of weights in float32, if each view is read once."""
    unknown: tuple[str, ...]
    """Checkpoints of which not even the shape is known here."""


def cost(batches: Iterable[CellBatch]) -> Cost:
    """What all batches cost together."""
    planned = list(batches)
    each = [seconds(batch) for batch in planned]
    views = {batch.in_view: parameters(batch) for batch in planned}
    unknown = dict.fromkeys(batch.checkpoint.asked for batch in planned if not batch.checkpoint.n_layers)
    return Cost(sum(each), max(each, default=0.0), 4 * sum(views.values()), tuple(unknown))


def seconds(batch: CellBatch) -> float:
    """Of one batch."""
    return seconds_of(shape(batch.checkpoint), batch.cells)


def memory(batch: CellBatch) -> int:
    """Bytes that a process takes for one batch, of weights in float32."""
    whole = shape(batch.checkpoint)
    heads = max(1, whole.n_embd // NARROWEST_HEAD)
    return estimate(replace(whole, n_head=heads), batch.cells).peak_bytes


def parameters(batch: CellBatch) -> int:
    """In view of a batch; of the whole model where a prompt goes through all views in turn."""
    whole = shape(batch.checkpoint)
    return whole.parameters if batch.view == IN_TURN else weights_in_view(whole, batch.cells[0])


def shape(checkpoint: Checkpoint) -> Architecture:
    return Architecture(
        n_embd=checkpoint.n_embd,
        n_layer=checkpoint.n_layers,
        n_head=1,  # the number of parameters does not depend on it
        rotary_dim=checkpoint.rotary_dim,
        hub=None,
        vocab_size=checkpoint.vocab_size,
    )
