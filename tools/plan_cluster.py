"""Estimate what a plan takes on a cluster: its batches, distributed to N workers on paper.

    python tools/plan_cluster.py configs/nightly.yaml 1 8 64 512

Batches are distributed by the executor's own queue: the longest view first. A worker keeps a view while it has batches,
and when every view has a worker, the batches of a view are shared. Times are those of `cgverify.plan.cost` for one
thread; `tools/time_cluster.py` measures what a batch costs the driver.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from cgverify.checkpoint import names
from cgverify.plan.batches import BatchWeights, CellBatch
from cgverify.plan.cost.of_plan import memory, parameters, seconds
from cgverify.plan.yaml_plan import load_plan
from cgverify.runs.execute.batch_queue import BatchQueue, longest_first
from cgverify.runs.prepare import outline
from cgverify.runs.request import ExecutionOptions, sweep_of

HASHING = 1.4e9
"""Bytes of a checkpoint that one thread reads from memory and hashes in a second."""

START = 10.0
"""Seconds in which a worker imports torch and what builds on it."""


@dataclass(frozen=True)
class Schedule:
    """A plan on a number of workers."""

    workers: int
    makespan: float
    busy: float
    """Seconds of all workers together."""
    read_bytes: int
    """Bytes of the views that workers read."""
    hashed_bytes: int
    """Bytes of the checkpoints: a worker that opens one reads all of it for the digest."""

    @property
    def efficiency(self) -> float:
        return self.busy / (self.workers * self.makespan)


def schedule(batches: Sequence[CellBatch], workers: int) -> Schedule:
    """Distribute a plan as the executor does: the worker that is free first takes the next batch."""
    queue = BatchQueue(longest_first(batches))
    free = [(START, worker) for worker in range(workers)]
    seen: dict[int, BatchWeights] = {}
    read_bytes = hashed_bytes = 0
    while queue:
        time, worker = heapq.heappop(free)
        batch = queue.take(seen.get(worker), {view for other, view in seen.items() if other != worker})
        if batch is None:
            raise AssertionError("every batch fits every worker here")
        if seen.get(worker) != batch.in_view:
            read_bytes += 4 * parameters(batch)
        if seen.get(worker, ())[:2] != batch.in_view[:2]:
            hashed_bytes += 4 * names.parameters(batch.checkpoint)
            time += 4 * names.parameters(batch.checkpoint) / HASHING
        seen[worker] = batch.in_view
        heapq.heappush(free, (time + seconds(batch), worker))
    return Schedule(workers, max(time for time, _ in free), sum(map(seconds, batches)), read_bytes, hashed_bytes)


def main(plan: Path, workers: list[int]) -> None:
    batches = outline(sweep_of(load_plan(plan), plan.stem), ExecutionOptions())
    cells = sum(len(batch.cells) for batch in batches)
    views = len({batch.in_view for batch in batches})
    print(
        f"{cells} cells, {len(batches)} batches, {views} views; longest batch {max(map(seconds, batches)):.0f} s; "
        f"largest batch {max(map(memory, batches)) / 1e9:.1f} GB"
    )
    print("| workers | time | busy | views read | hashed | batches a second |\n|---|---|---|---|---|---|")
    for number in workers:
        planned = schedule(batches, number)
        print(
            f"| {number} | {planned.makespan / 60:.1f} min | {planned.efficiency:.0%} "
            f"| {planned.read_bytes / 1e9:.0f} GB | {planned.hashed_bytes / 1e12:.1f} TB "
            f"| {len(batches) / planned.makespan:.2f} |"
        )


if __name__ == "__main__":
    typer.run(main)
