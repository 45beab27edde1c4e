"""`cgverify env`: what a report says of the place where it was made."""

from __future__ import annotations

import json

import typer

from cgverify.cli import options
from cgverify.cli.exits import exit_codes
from cgverify.cli.options import known


def env(format: options.Format = "table", threads: options.Threads = None) -> None:
    """Versions, machine, threads and numerics flags, as every run records them."""
    with exit_codes():
        known("format", [format], ("table", "json"))

        from cgverify.common.environment import machine, pin_numerics, versions

        described = {"versions": versions(), "machine": machine(), "numerics": pin_numerics(threads)}
        if format == "json":
            typer.echo(json.dumps(described))
            return
        for part, values in described.items():
            typer.echo(part)
            for name, value in values.items():
                typer.echo(f"  {name}: {value}")
