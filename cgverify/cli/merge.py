"""`cgverify merge`: the shards of a sweep as one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cgverify.cli import options
from cgverify.cli.exits import exit_codes
from cgverify.cli.options import FORMATS, known

Runs = Annotated[list[Path], typer.Argument(help="Run folders, one for each shard.", metavar="RUN…")]
Output = Annotated[Path, typer.Option(help="New run folder.", envvar="CGVERIFY_OUTPUT")]


def merge(
    runs: Runs,
    output: Output,
    format: options.Format = "table",
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Put the shards of a sweep together as the run that they are of.

    Refused are runs of another plan, other versions or numerics, and a set that lacks a shard. A cell that its shard
    did not come to is an error.

    Exit codes: those of the whole run; 2 where the runs do not fit together.
    """
    with exit_codes(verbose):
        known("format", [format], FORMATS)

        from cgverify.cli.verification import show
        from cgverify.report.frames import write_csv
        from cgverify.runs.merge import merge_runs, whole_or_nothing

        with whole_or_nothing(output):
            run, results = merge_runs(runs, output)
            write_csv(output, results)
        if not quiet:
            typer.echo(f"{run.model}: {len(results)} cells of {len(runs)} shards. Run folder {output}", err=True)
        code = show(run, results, format)
    raise typer.Exit(code)
