"""`cgverify sweep --dry-run`: what would be run, and what it would cost."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from cgverify.common.errors import UsageError
from cgverify.plan.batches import CellBatch
from cgverify.plan.cost.of_plan import Cost, cost, seconds

if TYPE_CHECKING:
    from cgverify.runs.request import ExecutionOptions, RunRequest


def show(order: RunRequest, options: ExecutionOptions, format: str) -> int:
    """Print the plan: a row per checkpoint and setting as a table, a row per cell as CSV, all as JSON."""
    from cgverify.runs.prepare import outline

    batches = outline(order, options)
    total = cost(batches)
    if format == "csv":
        cells = _cells(batches)
        writer = csv.DictWriter(sys.stdout, list(cells[0]) if cells else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(cells)
    elif format == "json":
        typer.echo(json.dumps({"cells": _cells(batches), "cost": asdict(total)}))
    elif format == "table":
        Console().print(_table(batches))
        typer.echo(_sentence(batches, total))
    else:
        raise UsageError(f"--dry-run prints table, csv or json, not {format}.")
    return 0


def _cells(batches: list[CellBatch]) -> list[dict[str, Any]]:
    """Every cell, with its share of its batch's time."""
    return [
        {"component": cell.component, **cell.model_dump(), "seconds": round(seconds(batch) / len(batch.cells), 4)}
        for batch in batches
        for cell in batch.cells
    ]


def _table(batches: list[CellBatch]) -> Table:
    """A row per checkpoint and setting."""
    table = Table()
    for heading in ("checkpoint", "dtype", "device", "rotary_dim"):
        table.add_column(heading)
    for heading in ("views", "cells", "weights", "time"):
        table.add_column(heading, justify="right")
    grouped: dict[tuple[str, str, str, str], list[CellBatch]] = {}
    for batch in batches:
        setting = (batch.checkpoint.asked, batch.dtype, batch.device, str(batch.cells[0].rotary_dim))
        grouped.setdefault(setting, []).append(batch)
    for setting, own in grouped.items():
        total = cost(own)
        cells = sum(len(batch.cells) for batch in own)
        table.add_row(*setting, str(len(own)), str(cells), f"{total.read_bytes / 1e9:.2f} GB", _time(total.seconds))
    return table


def _sentence(batches: list[CellBatch], total: Cost) -> str:
    number = sum(len(batch.cells) for batch in batches)
    told = (
        f"{number} cells in {len(batches)} batches, about {_time(total.seconds)} of one thread, reading "
        f"{total.read_bytes / 1e9:,.1f} GB; the longest chain, which no number of workers shortens, takes "
        f"{_time(total.longest)}."
    )
    if total.unknown:
        told += f" Of {', '.join(total.unknown)} the shape is not known here, and nothing is counted."
    return told


def _time(value: float) -> str:
    if value < 100:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 6000 else f"{value / 3600:.1f} h"
