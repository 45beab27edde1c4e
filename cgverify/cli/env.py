"""`cgverify env`: versions, machine and numerics flags."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from cgverify.cli import options
from cgverify.cli.command import command
from cgverify.cli.options import format_option, known

FORMATS = ("table", "json")
Format = Annotated[str, format_option(FORMATS)]


@command
def env(*, format: Format = "table", threads: options.Threads = None) -> int:
    """Show versions, machine, threads and numerics flags, as every run records them.

    Examples:
      cgverify env
      cgverify env --format json
      cgverify env --threads 1
    """
    known("format", [format], FORMATS)

    from cgverify.common.numerics import machine, pin_numerics, versions

    described = {"versions": versions(), "machine": machine(), "numerics": pin_numerics(threads)}
    if format == "json":
        typer.echo(json.dumps(described))
        return 0
    for part, values in described.items():
        typer.echo(part)
        for name, value in values.items():
            typer.echo(f"  {name}: {value}")
    return 0
