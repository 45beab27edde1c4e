"""`cgverify models`: what can be named, how large it is, and whether its weights are here."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer
from rich.console import Console
from rich.table import Table

from cgverify.checkpoint.names import ARCHITECTURES
from cgverify.cli import options
from cgverify.cli.exits import exit_codes
from cgverify.cli.options import known


def models(format: options.Format = "table") -> None:
    """The named checkpoints: shape, memory to verify them in float32, and whether the weights are on this disk."""
    with exit_codes():
        known("format", [format], ("table", "json"))

        from cgverify.checkpoint.disk import on_this_disk

        here = {name: on_this_disk(name) is not None for name in ARCHITECTURES}
        if format == "json":
            rows = [
                {"name": name, **asdict(shape), "parameters": shape.parameters}
                | {"memory_bytes": shape.peak_bytes, "on_this_disk": here[name]}
                for name, shape in ARCHITECTURES.items()
            ]
            typer.echo(json.dumps(rows))
            return
        table = Table()
        for heading in ("name", "hub id"):
            table.add_column(heading, no_wrap=True)
        for heading in ("layers", "heads", "n_embd", "rotary_dim", "parameters", "memory", "weights here"):
            table.add_column(heading, justify="right")
        for name, shape in ARCHITECTURES.items():
            table.add_row(
                *(name, shape.hub or "shipped in the package"),
                *(str(number) for number in (shape.n_layer, shape.n_head, shape.n_embd, shape.rotary_dim)),
                *(f"{shape.parameters / 1e6:,.0f} M", f"{shape.peak_bytes / 1e9:.1f} GB"),
                "yes" if here[name] else "no",
            )
        Console().print(table)
