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
from cgverify.plan.batches import Unit
from cgverify.plan.cost.of_plan import Cost, cost, seconds

if TYPE_CHECKING:
    from cgverify.runs.session import Means, Order


def show(order: Order, means: Means, format: str) -> int:
    """Print the plan: a row per checkpoint and setting as a table, a row per cell as CSV, all as JSON."""
    from cgverify.runs.session import outline

    units = outline(order, means)
    total = cost(units)
    if format == "csv":
        cells = _cells(units)
        writer = csv.DictWriter(sys.stdout, list(cells[0]) if cells else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(cells)
    elif format == "json":
        typer.echo(json.dumps({"cells": _cells(units), "cost": asdict(total)}))
    elif format == "table":
        Console().print(_table(units))
        typer.echo(_sentence(units, total))
    else:
        raise UsageError(f"--dry-run prints table, csv or json, not {format}.")
    return 0


def _cells(units: list[Unit]) -> list[dict[str, Any]]:
    """Every cell, with its share of its unit's time."""
    return [
        {"component": cell.component, **cell.model_dump(), "seconds": round(seconds(unit) / len(unit.cells), 4)}
        for unit in units
        for cell in unit.cells
    ]


def _table(units: list[Unit]) -> Table:
    """A row per checkpoint and setting."""
    table = Table()
    for heading in ("checkpoint", "dtype", "device", "rotary_dim"):
        table.add_column(heading)
    for heading in ("views", "cells", "weights", "time"):
        table.add_column(heading, justify="right")
    grouped: dict[tuple[str, str, str, str], list[Unit]] = {}
    for unit in units:
        setting = (unit.checkpoint.asked, unit.dtype, unit.device, str(unit.cells[0].rotary_dim))
        grouped.setdefault(setting, []).append(unit)
    for setting, own in grouped.items():
        total = cost(own)
        cells = sum(len(unit.cells) for unit in own)
        table.add_row(*setting, str(len(own)), str(cells), f"{total.read_bytes / 1e9:.2f} GB", _time(total.seconds))
    return table


def _sentence(units: list[Unit], total: Cost) -> str:
    number = sum(len(unit.cells) for unit in units)
    told = (
        f"{number} cells in {len(units)} units, about {_time(total.seconds)} of one thread, reading "
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
