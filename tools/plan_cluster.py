"""What a plan would take on a cluster, on paper: its batches, estimated and dealt out to N workers.

    python tools/plan_cluster.py configs/nightly.yaml --workers 1 8 64 512

Batches are dealt out by the executor's own queue: the longest view first, a worker keeps one while it lasts, and where
no view is left that nobody has, those that are there are shared. Times are those of `cgverify.plan.cost`, of one
thread; what a batch costs the driver is measured by `tools/time_cluster.py`.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cgverify.plan.batches import BatchWeights, CellBatch
from cgverify.plan.cost.of_plan import memory, parameters, seconds, shape
from cgverify.plan.yaml_plan import load_plan
from cgverify.runs.execute.batch_queue import BatchQueue, longest_first
from cgverify.runs.prepare import outline
from cgverify.runs.request import ExecutionOptions, sweep_of

HASHING = 1.4e9
"""Bytes of a checkpoint that one thread reads from memory and hashes in a second."""

START = 10.0
"""Seconds in which a worker imports torch and its company."""


@dataclass(frozen=True)
class Schedule:
    """A plan on so many workers."""

    workers: int
    makespan: float
    busy: float
    """Seconds of all workers together."""
    read_bytes: int
    """Of views."""
    hashed_bytes: int
    """Of checkpoints, which whoever opens one reads through once for its digest."""

    @property
    def efficiency(self) -> float:
        return self.busy / (self.workers * self.makespan)


def schedule(batches: Sequence[CellBatch], workers: int) -> Schedule:
    """Deal a plan out as the executor does: who is free first takes of what it has in view, or else the next view."""
    queue = BatchQueue(longest_first(batches))
    free = [(START, worker) for worker in range(workers)]
    seen: dict[int, BatchWeights] = {}
    read_bytes = hashed_bytes = 0
    while queue:
        time, worker = heapq.heappop(free)
        batch = queue.take(seen.get(worker), {view for other, view in seen.items() if other != worker})
        if seen.get(worker) != batch.in_view:
            read_bytes += 4 * parameters(batch)
        if seen.get(worker, ())[:2] != batch.in_view[:2]:
            hashed_bytes += 4 * shape(batch.checkpoint).parameters
            time += 4 * shape(batch.checkpoint).parameters / HASHING
        seen[worker] = batch.in_view
        heapq.heappush(free, (time + seconds(batch), worker))
    return Schedule(workers, max(time for time, _ in free), sum(map(seconds, batches)), read_bytes, hashed_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64, 512])
    options = parser.parse_args()
    batches = outline(sweep_of(load_plan(options.plan), options.plan.stem), ExecutionOptions())
    longest = max(seconds(batch) for batch in batches)
    cells = sum(len(batch.cells) for batch in batches)
    views = len({batch.in_view for batch in batches})
    print(f"{cells} cells, {len(batches)} batches, {views} views; longest batch {longest:.0f} s;", end=" ")
    print(f"largest batch {max(memory(batch) for batch in batches) / 1e9:.1f} GB")
    print("| workers | time | busy | views read | hashed | batches a second |\n|---|---|---|---|---|---|")
    for workers in options.workers:
        told = schedule(batches, workers)
        rate = len(batches) / told.makespan
        print(
            f"| {workers} | {told.makespan / 60:.1f} min | {told.efficiency:.0%} | {told.read_bytes / 1e9:.0f} GB "
            f"| {told.hashed_bytes / 1e12:.1f} TB | {rate:.2f} |"
        )


if __name__ == "__main__":
    main()
