"""Measure how much sooner N workers of one thread finish a plan than one worker, on this machine.

    python tools/time_workers.py configs/rotary.yaml --workers 2 --rounds 3

A cluster on loopback is started before time is taken. Rounds alternate, and the shortest times are compared. If the
machine does other work as well, wall times say little; the processor time of the busiest worker still shows how the
work was shared.
"""

from __future__ import annotations

import time
from pathlib import Path

import typer
from measuring import loopback_cluster

from cgverify.plan.yaml_plan import load_plan
from cgverify.runs.execute.dask import Dask
from cgverify.runs.prepare import PreparedRun, prepare
from cgverify.runs.request import ExecutionOptions, sweep_of


def seconds_on(workers: int, prepared: PreparedRun) -> tuple[float, float]:
    """Run the whole plan, and return its seconds on the clock and on the busiest worker's processor."""
    with loopback_cluster(workers) as (address, client):
        before = client.run(time.process_time)
        started = time.perf_counter()
        for _ in Dask(address).run(prepared.batches, prepared.job()):
            pass
        taken = time.perf_counter() - started
        after = client.run(time.process_time)
    return taken, max(after[worker] - before[worker] for worker in before)


def main(plan: Path, workers: int = 2, rounds: int = 3) -> None:
    prepared = prepare(sweep_of(load_plan(plan), plan.stem), ExecutionOptions(threads=1))
    times: dict[int, list[tuple[float, float]]] = {1: [], workers: []}
    for _ in range(rounds):
        for number, taken in times.items():
            wall, busiest = seconds_on(number, prepared)
            taken.append((wall, busiest))
            print(f"{number} workers: {wall:.1f} s, busiest worker {busiest:.1f} s of processor time", flush=True)
    (one, one_busy), (many, many_busy) = (map(min, zip(*taken, strict=True)) for taken in times.values())
    print(
        f"{workers} workers take {many / one:.2f} of the time of one ({many:.1f} s, {one:.1f} s); the busiest "
        f"takes {many_busy / one_busy:.2f} of the processor time of one"
    )


if __name__ == "__main__":
    typer.run(main)
