"""Measure the overhead of a cluster: batches of cells that verify nothing, on a Dask cluster on loopback.

    python tools/time_cluster.py --cells 5000 --cells-per-batch 1 --workers 2

Scheduler, workers, pickling and the run folder are real. Only the verification is replaced: it returns at once, with
one finding per tap. The script prints the time per cell, and the driver's memory after each tenth of the cells.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import typer
from measuring import loopback_cluster

from cgverify.common.records import Cell, CellResult, Finding, Run, Verdict
from cgverify.plan.batches import CellBatch, Job
from cgverify.plan.yaml_plan import parse_plan
from cgverify.runs.execute import in_process
from cgverify.runs.execute.dask import Dask
from cgverify.runs.folder import RunFolder
from cgverify.runs.prepare import outline
from cgverify.runs.request import ExecutionOptions, sweep_of

TAPS = 30
"""Findings per cell, as many as attention has."""


class IdleVerifier:
    """A verifier that finds every tap bitwise without looking at it."""

    def __init__(self, _: Job) -> None:
        self._finding = Finding(step="forward", tap="hook_z", stage="mix", verdict=Verdict.BITWISE, r=0.1, shape=(2, 8))

    def verify(self, batch: CellBatch, watch: Callable[[Cell | None], None]) -> Iterator[CellResult]:
        for cell in batch.cells:
            watch(cell)
            yield CellResult(cell=cell, findings=(self._finding,) * TAPS, seconds=0.0)


def replace_verifier() -> None:
    """Make the worker process that runs this verify nothing from now on."""
    in_process.BatchVerifier = IdleVerifier  # type: ignore[assignment, misc]


def trivial_batches(cells: int, cells_per_batch: int) -> list[CellBatch]:
    plan = parse_plan({"models": "codegen-nano", "components": "attn.q", "layers": 0, "seeds": list(range(cells))})
    (batch,) = outline(sweep_of(plan, "trivial"), ExecutionOptions())
    own = batch.cells[:cells]
    parts = [own[start : start + cells_per_batch] for start in range(0, cells, cells_per_batch)]
    return [CellBatch(batch.checkpoint, batch.view, batch.dtype, batch.device, part) for part in parts]


def measure(cells: int, cells_per_batch: int, workers: int, folder: Path) -> tuple[float, list[int]]:
    """Return the seconds per cell, and the driver's resident bytes after each tenth of the cells."""
    job = Job(("cgverify",), threads=1)
    batches = trivial_batches(cells, cells_per_batch)
    described = {"created": "", "command": "", "model": "", "weights_origin": "", "weights_digest": ""}
    kept = RunFolder.create(folder, Run(**described, settings={}, environment={}))
    memory = []
    with loopback_cluster(workers) as (address, client):
        client.run(replace_verifier)
        started = time.perf_counter()
        for number, result in enumerate(Dask(address, lambda _: 0).run(batches, job), start=1):
            kept.append(result)
            if number % max(1, cells // 10) == 0:
                memory.append(psutil.Process().memory_info().rss)
        seconds = time.perf_counter() - started
    kept.close()
    return seconds / cells, memory


def main(cells: int = 5000, cells_per_batch: int = 1, workers: int = 2) -> None:
    with tempfile.TemporaryDirectory() as folder:
        seconds, memory = measure(cells, cells_per_batch, workers, Path(folder) / "run")
    megabytes = " ".join(f"{value / 1e6:.0f}" for value in memory)
    print(f"{1000 * seconds:.1f} ms per cell on {os.cpu_count()} processors; memory of the driver in MB: {megabytes}")


if __name__ == "__main__":
    typer.run(main)
