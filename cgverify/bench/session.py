"""Prepare a benchmark, and keep its result in a folder. Nothing is printed here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import torch

from cgverify.bench import page
from cgverify.bench.baseline import FILE
from cgverify.bench.harness import Harness
from cgverify.bench.records import BenchRun, Measured, Point
from cgverify.bench.scenarios import Selection
from cgverify.bench.table import bench_frame
from cgverify.bench.timing import Limits, product_rate
from cgverify.checkpoint.resolve import resolve
from cgverify.common.devices import require_devices, require_dtype
from cgverify.common.errors import RunFolderError
from cgverify.common.numerics import machine, pin_numerics, versions
from cgverify.common.streams import stdout_to_stderr
from cgverify.observe.candidate import find_candidate
from cgverify.runs.folder import new_folder


@dataclass(frozen=True)
class PreparedBench:
    """A benchmark that is ready to be measured."""

    harness: Harness
    points: Sequence[Point]
    numerics: dict[str, Any]
    rates: dict[str, float]
    """FLOP/s of a large matrix product, by `dtype device`."""
    folder: Path

    def finish(self, measured: Sequence[Measured]) -> BenchRun:
        """Write bench.json, bench.csv and bench.html, and return the benchmark."""
        harness, limits = self.harness, self.harness.limits
        run = BenchRun(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            model=harness.model,
            weights_origin=harness.source.origin,
            weights_digest=harness.source.digest,
            settings={
                "bridge": list(harness.candidates),
                "seconds": limits.seconds,
                "width": limits.width,
                "weights": harness.weights,
            },
            environment={"versions": versions(), "machine": machine(), "numerics": self.numerics},
            product_rates=self.rates,
            measured=tuple(measured),
        )
        (self.folder / FILE).write_text(run.model_dump_json(indent=1) + "\n", encoding="utf-8")
        bench_frame(run).to_csv(self.folder / "bench.csv", index=False, lineterminator="\n")
        (self.folder / "bench.html").write_text(page.render(run), encoding="utf-8")
        return run


def prepare(
    model: str,
    weights: str,
    bridges: Sequence[str],
    selection: Selection,
    limits: Limits,
    *,
    threads: int | None = None,
    memory: str = "fresh",
    output: Path | None = None,
) -> PreparedBench:
    """Find the checkpoint and the candidates, make the folder, and measure how fast this machine multiplies.

    Args:
        threads: number of torch threads; None leaves torch's, but no more than there are processors.
        memory: `fresh` or `kept`, which is recorded.
        output: the folder; None makes one in `reports/`.

    Raises:
        CgverifyError: a device, a candidate or the checkpoint is not available, or the folder cannot be used.
    """
    require_devices(selection.devices)
    for dtype, device in product(selection.dtypes, selection.devices):
        require_dtype(torch.device(device), getattr(torch, dtype))
    with stdout_to_stderr():
        candidates = {name: find_candidate(name) for name in bridges}
    source = resolve(model, weights)
    numerics = pin_numerics(threads) | {"memory": memory}
    folder = _make_folder(
        output or new_folder(f"bench-{Path(model).resolve().name if Path(model).is_dir() else model}")
    )
    rates = {
        f"{dtype} {device}": product_rate(getattr(torch, dtype), torch.device(device))
        for dtype in selection.dtypes
        for device in selection.devices
    }
    harness = Harness(model, weights, source, candidates, numerics["threads"], limits)
    return PreparedBench(harness, selection.points(source.config.n_positions), numerics, rates, folder)


def _make_folder(path: Path) -> Path:
    """Make the folder before anything is measured, so that a wrong path costs no time."""
    try:
        if path.exists() and any(path.iterdir()):
            raise RunFolderError(f"{path} exists and is not empty: give another --output.")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"Cannot write to {path}: {error.strerror}. Give another --output.") from error
    return path
