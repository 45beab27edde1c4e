"""How many processes share a run, and how many threads each has, if the user does not say.

Half of a verification is Python between small products, which processes share and threads do not. Large products keep
all threads busy, and a second process would take as much memory again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cgverify.checkpoint.names import parameters
from cgverify.common.records import Cell, Checkpoint
from cgverify.plan.batches import CellBatch
from cgverify.plan.cases import WHOLE
from cgverify.plan.cost.of_plan import seconds

LARGE = 3_000_000_000
"""Bytes of a process from which on one process works with all threads: a layer of codegen-6B takes less, one of
codegen-16B more."""

WORTH_SHARING = 5.0
"""Seconds of work that are worth a second process."""

SHARE_OF_MEMORY = 4
"""All processes together take at most this part of the memory that is available: 4 is a quarter."""


def threads_of_each(largest: int) -> int | None:
    """Return the threads of each process; None for all processors.

    It depends on the plan alone, so that the same command gives the same bits on a machine with more processors.

    Args:
        largest: see `largest_process`.
    """
    return 1 if largest < LARGE else None


def processes(batches: Sequence[CellBatch], largest: int, available: int, at_once: int) -> int:
    """Return the number of processes that share batches: one, unless they are small, many and all on the CPU.

    Args:
        largest: see `largest_process`.
        available: bytes that may be taken.
        at_once: the processes that can work at the same time.
    """
    if largest >= LARGE or any(batch.device != "cpu" for batch in batches):
        return 1
    if sum(map(seconds, batches)) < WORTH_SHARING:
        return 1
    with_room = available // SHARE_OF_MEMORY // max(largest, 1)
    return max(1, min(at_once, with_room, len({batch.in_view for batch in batches})))


def largest_process(peaks: Mapping[str, int], cells: Sequence[Cell], checkpoints: Sequence[Checkpoint]) -> int:
    """Return the bytes that one process takes at most, whole models included, of which each side is one.

    Args:
        peaks: the estimated bytes without whole models, by digest of the checkpoint.
    """
    whole = {cell.weights for cell in cells if cell.kind in WHOLE}
    sizes = [8 * parameters(checkpoint) for checkpoint in checkpoints if checkpoint.digest in whole]
    return max(peaks.values(), default=0) + max(sizes, default=0)
