"""What the cluster itself costs: batches of cells that verify nothing, on a Dask cluster on loopback.

    python tools/time_cluster.py --cells 5000 --cells-per-batch 1 --workers 2

Everything is real (scheduler, workers, pickling, the run folder) but for the verification, which returns at once with
one finding a tap. Prints the time for a cell, and the driver's resident memory after each tenth of the cells.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import distributed

from cgverify.common.records import Cell, CellResult, Finding, Run, Verdict
from cgverify.plan.batches import CellBatch, Job
from cgverify.plan.yaml_plan import parse_plan
from cgverify.runs.execute import in_process
from cgverify.runs.execute.dask import Dask
from cgverify.runs.folder import RunFolder
from cgverify.runs.prepare import outline
from cgverify.runs.request import ExecutionOptions, sweep_of

TAPS = 30
"""Findings of a cell, as attention has."""


class Idle:
    """A worker that finds everything bitwise, and looks at nothing."""

    def __init__(self, job: Job) -> None:
        self._finding = Finding(step="forward", tap="hook_z", stage="mix", verdict=Verdict.BITWISE, r=0.1, shape=(2, 8))

    def verify(self, batch: CellBatch, watch: Callable[[Cell | None], None]) -> Iterator[CellResult]:
        for cell in batch.cells:
            watch(cell)
            yield CellResult(cell=cell, findings=(self._finding,) * TAPS, seconds=0.0)


def be_idle() -> None:
    """On a worker: verify nothing from now on."""
    in_process.BatchVerifier = Idle  # type: ignore[assignment, misc]


def trivial_units(cells: int, cells_per_unit: int) -> list[CellBatch]:
    plan = parse_plan({"models": "codegen-nano", "components": "attn.q", "layers": 0, "seeds": list(range(cells))})
    (batch,) = outline(sweep_of(plan, "trivial"), ExecutionOptions())
    own = batch.cells[:cells]
    parts = [own[start : start + cells_per_unit] for start in range(0, cells, cells_per_unit)]
    return [CellBatch(batch.checkpoint, batch.view, batch.dtype, batch.device, part) for part in parts]


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(cells: int, cells_per_unit: int, workers: int, folder: Path) -> dict[str, Any]:
    """Seconds for a cell, and the driver's memory as it goes."""
    job = Job(("cgverify",), threads=1)
    batches = trivial_units(cells, cells_per_unit)
    described = {"created": "", "command": "", "model": "", "weights_origin": "", "weights_digest": ""}
    kept = RunFolder.create(folder, Run(**described, settings={}, environment={}))
    memory = []
    with distributed.LocalCluster(n_workers=workers, threads_per_worker=1, host="127.0.0.1") as cluster:
        with distributed.Client(cluster, set_as_default=False) as client:
            client.wait_for_workers(workers)
            client.run(be_idle)
        started = time.perf_counter()
        for number, result in enumerate(Dask(cluster.scheduler_address, lambda _: 0).run(batches, job), start=1):
            kept.append(result)
            if number % max(1, cells // 10) == 0:
                memory.append(resident())
        seconds = time.perf_counter() - started
    kept.close()
    return {"milliseconds": 1000 * seconds / cells, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=5000)
    parser.add_argument("--cells-per-batch", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = measure(options.cells, options.cells_per_unit, options.workers, Path(folder) / "run")
    memory = " ".join(f"{value / 1e6:.0f}" for value in told["memory"])
    print(f"{told['milliseconds']:.1f} ms a cell, on {os.cpu_count()} processors; driver's memory in MB: {memory}")


if __name__ == "__main__":
    main()
