"""A plan that is not run, as a report: its cells, and their estimated cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from cgverify.plan.batches import CellBatch
from cgverify.plan.cost.of_plan import cost, seconds
from cgverify.plan.cost.time import START, Speed, measured_speed
from cgverify.report.numbers import duration
from cgverify.report.sections import Report, Section


def dry_run_report(batches: Sequence[CellBatch]) -> Report:
    """Return the report of a plan: a row for each cell, or in sections for each checkpoint and setting.

    Times are of this machine, and only of cells on the CPU.
    """
    speed = measured_speed()
    return Report(
        title="Dry run",
        sections=lambda: _sections(batches, speed),
        frame=lambda: pd.DataFrame(_cells(batches, speed), dtype=object),
        value=lambda: {"cells": _cells(batches, speed), "cost": asdict(cost(batches, speed))},
    )


def _cells(batches: Sequence[CellBatch], speed: Speed) -> list[dict[str, Any]]:
    """Return every cell, with its share of its batch's time; None on another device than the CPU."""
    return [
        {
            "component": cell.component,
            **cell.model_dump(),
            "seconds": round(seconds(batch, speed) / len(batch.cells), 4) if batch.device == "cpu" else None,
        }
        for batch in batches
        for cell in batch.cells
    ]


def _sections(batches: Sequence[CellBatch], speed: Speed) -> Iterator[Section]:
    grouped: dict[tuple[str, ...], list[CellBatch]] = {}
    for batch in batches:
        cell = batch.cells[0]
        setting: tuple[str, ...] = (
            batch.checkpoint.asked,
            batch.dtype,
            batch.device,
            str(cell.rotary_dim),
            cell.attention,
        )
        grouped.setdefault(setting, []).append(batch)
    rows = []
    for setting, own in grouped.items():
        total, cells = cost(own, speed), sum(len(batch.cells) for batch in own)
        time = "–" if total.untimed else duration(total.seconds)
        rows.append([*setting, str(len(own)), str(cells), f"{total.read_bytes / 1e9:.2f} GB", time])
    columns = ["checkpoint", "dtype", "device", "rotary_dim", "attention", "views", "cells", "weights", "time"]
    yield Section("", columns=columns, rows=rows)
    yield Section(_sentence(batches, speed), tone="note")


def _sentence(batches: Sequence[CellBatch], speed: Speed) -> str:
    total = cost(batches, speed)
    sentence = (
        f"{sum(len(batch.cells) for batch in batches)} cells in {len(batches)} batches, reading "
        f"{total.read_bytes / 1e9:,.1f} GB"
    )
    if total.seconds:
        start = duration(START * speed.python)
        sentence += (
            f", about {duration(total.seconds)} of one thread here, and {start} for the start of each "
            f"process; the longest chain, which no number of workers shortens, takes {duration(total.longest)}"
        )
    sentence += "."
    if total.untimed:
        sentence += f" The time on {', '.join(total.untimed)} is not estimated."
    if total.unknown:
        sentence += f" The shape of {', '.join(total.unknown)} is not known here, so its cost is not counted."
    return sentence
