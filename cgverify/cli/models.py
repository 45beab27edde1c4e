"""`cgverify models`: the named checkpoints, their size, and whether their weights are on this disk."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cgverify.checkpoint.names import ARCHITECTURES, Architecture
from cgverify.cli.command import command
from cgverify.cli.options import format_option, known
from cgverify.common.records import Cell
from cgverify.plan.cells import Axes, CheckpointShape, cells

FORMATS = ("table", "json")
Format = Annotated[str, format_option(FORMATS)]


@command
def models(*, format: Format = "table") -> int:
    """List the named checkpoints: shape, what a plain run takes here, and whether the weights are on this disk."""
    known("format", [format], FORMATS)

    from cgverify.checkpoint.disk import on_this_disk
    from cgverify.plan.cost.estimate import duration, estimate, measured_speed

    speed = measured_speed()
    here = {name: on_this_disk(name) is not None for name in ARCHITECTURES}
    takes = {name: estimate(shape, _plain_run(name, shape), speed=speed) for name, shape in ARCHITECTURES.items()}
    if format == "json":
        rows = [
            {"name": name, **asdict(shape), "parameters": shape.parameters}
            | {"memory_bytes": takes[name].peak_bytes, "seconds": round(takes[name].seconds)}
            | {"on_this_disk": here[name]}
            for name, shape in ARCHITECTURES.items()
        ]
        typer.echo(json.dumps(rows))
        return 0
    table = Table(
        caption="memory and time: estimated for a plain run in float32 on this machine; codegen-nano ships with "
        "cgverify, the others are on the hub as Salesforce/NAME (-mono if the name says no language)"
    )
    table.add_column("name", no_wrap=True)
    for heading in ("layers", "n_embd", "weights", "memory", "time", "here"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, shape in ARCHITECTURES.items():
        table.add_row(
            *(name, str(shape.n_layer), str(shape.n_embd)),
            *(f"{shape.parameters / 1e6:,.0f} M", f"{takes[name].peak_bytes / 1e9:.1f} GB"),
            *(duration(takes[name].seconds), "yes" if here[name] else "no"),
        )
    Console().print(table)
    return 0


def _plain_run(name: str, shape: Architecture) -> list[Cell]:
    subject = CheckpointShape(name, "", shape.n_layer, shape.rotary_dim, shape.n_positions)
    return cells(subject, Axes())
