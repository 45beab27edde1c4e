"""A plan that is not run, as a report: its cells, and their estimated cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from cgverify.plan.batches import CellBatch
from cgverify.plan.cost.of_plan import cost, seconds
from cgverify.report.numbers import duration
from cgverify.report.sections import Report, Section


def dry_run_report(batches: Sequence[CellBatch]) -> Report:
    """Return the report of a plan: a row for each cell, or in sections for each checkpoint and setting."""
    return Report(
        title="Dry run",
        sections=lambda: _sections(batches),
        frame=lambda: pd.DataFrame(_cells(batches), dtype=object),
        value=lambda: {"cells": _cells(batches), "cost": asdict(cost(batches))},
    )


def _cells(batches: Sequence[CellBatch]) -> list[dict[str, Any]]:
    """Return every cell, with its share of its batch's time."""
    return [
        {"component": cell.component, **cell.model_dump(), "seconds": round(seconds(batch) / len(batch.cells), 4)}
        for batch in batches
        for cell in batch.cells
    ]


def _sections(batches: Sequence[CellBatch]) -> Iterator[Section]:
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
        total, cells = cost(own), sum(len(batch.cells) for batch in own)
        amounts = str(len(own)), str(cells), f"{total.read_bytes / 1e9:.2f} GB", duration(total.seconds)
        rows.append([*setting, *amounts])
    columns = ["checkpoint", "dtype", "device", "rotary_dim", "attention", "views", "cells", "weights", "time"]
    yield Section("", columns=columns, rows=rows)
    yield Section(_sentence(batches), tone="note")


def _sentence(batches: Sequence[CellBatch]) -> str:
    total = cost(batches)
    number = sum(len(batch.cells) for batch in batches)
    sentence = (
        f"{number} cells in {len(batches)} batches, about {duration(total.seconds)} of one thread, reading "
        f"{total.read_bytes / 1e9:,.1f} GB; the longest chain, which no number of workers shortens, takes "
        f"{duration(total.longest)}."
    )
    if total.unknown:
        sentence += f" The shape of {', '.join(total.unknown)} is not known here, so its cost is not counted."
    return sentence
