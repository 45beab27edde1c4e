"""How much sooner N workers of one thread are done than one, on this machine.

    python tools/time_workers.py configs/rotary.yaml --workers 2 --rounds 3

A cluster on loopback is started before time is taken. Rounds alternate, and the least times are compared. On a machine
that does something else as well they say little; the processor time of the busiest worker still tells how work was
shared.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import distributed

from cgverify.plan.yaml_plan import load_plan
from cgverify.runs.execute.dask import Dask
from cgverify.runs.prepare import PreparedRun, prepare
from cgverify.runs.request import ExecutionOptions, sweep_of


def seconds_on(workers: int, prepared: PreparedRun) -> tuple[float, float]:
    """Of the whole plan, nothing of which is kept: on the clock, and of the busiest worker's processor."""
    with (
        distributed.LocalCluster(n_workers=workers, threads_per_worker=1, host="127.0.0.1") as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(workers)
        before = client.run(time.process_time)
        started = time.perf_counter()
        for _ in Dask(cluster.scheduler_address).run(prepared.batches, prepared.job()):
            pass
        taken = time.perf_counter() - started
        after = client.run(time.process_time)
    return taken, max(after[worker] - before[worker] for worker in before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    prepared = prepare(sweep_of(load_plan(options.plan), options.plan.stem), ExecutionOptions(threads=1))
    times: dict[int, list[tuple[float, float]]] = {1: [], options.workers: []}
    for _ in range(options.rounds):
        for workers, taken in times.items():
            taken.append(seconds_on(workers, prepared))
            print(f"{workers} workers: {taken[-1][0]:.1f} s, the busiest {taken[-1][1]:.1f} s of processor", flush=True)
    (one, one_busy), (many, many_busy) = (map(min, zip(*taken, strict=True)) for taken in times.values())
    print(
        f"{options.workers} workers take {many / one:.2f} of the time of one ({many:.1f} s, {one:.1f} s), and the "
        f"busiest {many_busy / one_busy:.2f} of its processor time"
    )


if __name__ == "__main__":
    main()
