"""`cgverify models`: the named checkpoints, their size, and whether their weights are on this disk."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cgverify.checkpoint.names import HUB_IDS, NAMED, parameters
from cgverify.cli.command import command
from cgverify.cli.options import format_option, known
from cgverify.plan.axes import Axes
from cgverify.plan.cells import cells

FORMATS = ("table", "json")
Format = Annotated[str, format_option(FORMATS)]


@command
def models(*, format: Format = "table") -> int:
    """List the named checkpoints: shape, what a plain run takes here, and whether the weights are on this disk.

    Examples:
      cgverify models
      cgverify models --format json
      cgverify models --format json | python -m json.tool
    """
    known("format", [format], FORMATS)

    from cgverify.checkpoint.disk import on_this_disk
    from cgverify.plan.cost.memory import peak_bytes
    from cgverify.plan.cost.time import START, measured_speed, seconds_of
    from cgverify.report.numbers import duration

    speed = measured_speed()
    rows: list[dict[str, Any]] = []
    for name, checkpoint in NAMED.items():
        planned = cells(checkpoint, Axes())
        rows.append(
            {
                "name": name,
                "n_embd": checkpoint.n_embd,
                "n_layer": checkpoint.n_layers,
                "n_head": checkpoint.n_head,
                "rotary_dim": checkpoint.rotary_dim,
                "hub": HUB_IDS.get(name),
                "vocab_size": checkpoint.vocab_size,
                "n_positions": checkpoint.n_positions,
                "parameters": parameters(checkpoint),
                "memory_bytes": peak_bytes(checkpoint, planned),
                "seconds": round(START * speed.python + seconds_of(checkpoint, planned, speed)),
                "on_this_disk": on_this_disk(name) is not None,
            }
        )
    if format == "json":
        typer.echo(json.dumps(rows))
        return 0
    table = Table(
        caption="memory and processor time: estimated for a plain run in float32 on this machine; codegen-nano ships "
        "with cgverify, the others are on the hub as Salesforce/NAME (-mono if the name says no language)"
    )
    table.add_column("name", no_wrap=True)
    for heading in ("layers", "n_embd", "weights", "memory", "time", "here"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            *(row["name"], str(row["n_layer"]), str(row["n_embd"])),
            *(f"{row['parameters'] / 1e6:,.0f} M", f"{row['memory_bytes'] / 1e9:.1f} GB"),
            *(duration(row["seconds"]), "yes" if row["on_this_disk"] else "no"),
        )
    Console().print(table)
    return 0
