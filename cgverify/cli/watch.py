"""`cgverify watch`: follow a run that another process carries out, on this machine or on one with the same disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cgverify.cli import completion, options
from cgverify.cli.command import command

Folder = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="The folder of a run that is being carried out.", autocompletion=completion.run_folders
    ),
]


@command
def watch(*, run: Folder, quiet: options.Quiet = False) -> int:
    """Follow a run in its folder until its last cell is finished, or it has ended early.

    A terminal shows how far it is, and each fault when it is found. Nothing is written to the folder. Ctrl-C stops
    watching, and the run goes on.

    Examples:
      cgverify watch RUN
      cgverify watch RUN --quiet
      cgverify watch reports/nightly > verdict.txt

    Exit codes: those of the run, 2 bad usage, 130 interrupted.
    """
    from cgverify.api import load_run
    from cgverify.cli.running import console
    from cgverify.plan.batches import batches
    from cgverify.report.outcome import verdict_line
    from cgverify.report.progress import RunProgress
    from cgverify.runs.reading import follow, read_plan, read_run

    described, finished = read_run(run)
    planned = batches([each.cell for each in read_plan(run)], described.checkpoints)
    with RunProgress(console(quiet), planned, finished) as progress:
        for _ in progress.through(follow(run)):
            pass
    result = load_run(run)
    typer.echo(verdict_line(result.results))
    if len(result.results) < result.planned:
        typer.echo(f"The run has ended after {len(result.results)} of {result.planned} cells.", err=True)
    return result.exit_code
