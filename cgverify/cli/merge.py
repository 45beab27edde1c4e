"""`cgverify merge`: the shards of a sweep as one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cgverify.cli import completion, options
from cgverify.cli.command import command
from cgverify.cli.options import kept, known
from cgverify.report.formats import FORMATS

Runs = Annotated[
    list[Path],
    typer.Argument(help="Run folders, one for each shard.", metavar="RUN…", autocompletion=completion.run_folders),
]
Output = Annotated[Path, kept("output", "A new folder for the merged run.", shows="FOLDER")]


@command
def merge(
    *,
    runs: Runs,
    output: Output,
    format: options.Format = "table",
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,  # noqa: ARG001  read by @command
) -> int:
    """Merge the shards of a sweep into one run.

    Runs of different plans, versions or numerics are refused, and so is a set that lacks a shard. A cell that its
    shard did not verify is an error.

    Examples:
      cgverify merge shard-1 shard-2 --output RUN
      cgverify merge shard-* --output RUN --format markdown
      cgverify merge shard-* --output RUN --quiet --format json

    Exit codes: those of the merged run; 2 the runs do not fit together.
    """
    known("format", [format], FORMATS)

    from cgverify.cli.running import show
    from cgverify.report.frames import write_csv
    from cgverify.runs.merge import merge_runs, whole_or_nothing

    with whole_or_nothing(output):
        run, results = merge_runs(runs, output)
        write_csv(output, results)
    if not quiet:
        typer.echo(f"{run.model}: {len(results)} cells of {len(runs)} shards. Run folder {output}", err=True)
    return show(run, results, format)
