"""A plan before it is run, as `cgverify sweep --dry-run` shows it: its cells, and what they would cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from cgverify.common.errors import UsageError
from cgverify.plan.batches import CellBatch
from cgverify.plan.cost.of_plan import cost, seconds


def render(format: str, batches: Sequence[CellBatch]) -> str:
    """Return a plan as text: a row for each checkpoint and setting (table), or for each cell (csv, json).

    Raises:
        UsageError: another format.
    """
    if format == "csv":
        return pd.DataFrame(_cells(batches), dtype=object).to_csv(index=False)
    if format == "json":
        return json.dumps({"cells": _cells(batches), "cost": asdict(cost(batches))}) + "\n"
    if format != "table":
        raise UsageError(f"--dry-run prints table, csv or json, not {format}.")
    console = Console()
    with console.capture() as captured:
        console.print(_table(batches))
    return f"{captured.get()}{_sentence(batches)}\n"


def _cells(batches: Sequence[CellBatch]) -> list[dict[str, Any]]:
    """Return every cell, with its share of its batch's time."""
    return [
        {"component": cell.component, **cell.model_dump(), "seconds": round(seconds(batch) / len(batch.cells), 4)}
        for batch in batches
        for cell in batch.cells
    ]


def _table(batches: Sequence[CellBatch]) -> Table:
    table = Table("checkpoint", "dtype", "device", "rotary_dim")
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


def _sentence(batches: Sequence[CellBatch]) -> str:
    total = cost(batches)
    number = sum(len(batch.cells) for batch in batches)
    sentence = (
        f"{number} cells in {len(batches)} batches, about {_time(total.seconds)} of one thread, reading "
        f"{total.read_bytes / 1e9:,.1f} GB; the longest chain, which no number of workers shortens, takes "
        f"{_time(total.longest)}."
    )
    if total.unknown:
        sentence += f" The shape of {', '.join(total.unknown)} is not known here, so its cost is not counted."
    return sentence


def _time(value: float) -> str:
    if value < 100:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 6000 else f"{value / 3600:.1f} h"
