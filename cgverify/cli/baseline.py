"""`cgverify baseline accept`: keep a run as the one that later runs are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cgverify.cli import options
from cgverify.cli.command import command
from cgverify.cli.help import Command, Group, help_of
from cgverify.cli.options import kept
from cgverify.common.errors import RunFolderError, UsageError

if TYPE_CHECKING:
    from cgverify.runs.baseline import StoredRun

app = typer.Typer(cls=Group, help="Keep runs to compare with.", no_args_is_help=True)

Name = Annotated[
    str | None,
    typer.Argument(metavar="NAME", help="The baseline's name. By default MODEL-DEVICE.", show_default=False),
]
Reports = Annotated[Path, kept("reports", "The folder of the baselines.", shows="FOLDER")]


@app.callback()
def baseline() -> None:
    pass  # with a callback, typer keeps `accept` a subcommand although it is the only one


@command
def accept(
    *,
    run: options.RunFolder,
    name: Name = None,
    reports: Reports = Path("reports"),
    verbose: options.Verbose = 0,  # noqa: ARG001  read by @command
) -> int:
    """Keep a run as a baseline, replace an older one, and report what differs from that one.

    Examples:
      cgverify baseline accept RUN
      cgverify baseline accept RUN nightly
      cgverify baseline accept RUN nightly --reports baselines

    Exit codes: 0 accepted, 2 bad usage, or a run that cannot be a baseline.
    """
    from cgverify.report.comparison import comparison_sections
    from cgverify.report.frames import summary_frame
    from cgverify.report.render import terminal
    from cgverify.runs.baseline import PACKED, load_stored_run, require_finished
    from cgverify.runs.baseline import accept as keep
    from cgverify.runs.comparison import compare_runs

    require_finished(run)
    stored = load_stored_run(run)
    path = reports / (name or _name(stored))
    before = None
    if (path / PACKED).exists():
        try:
            before = load_stored_run(path)
        except RunFolderError as error:
            typer.echo(f"The run is not compared with the baseline that it replaces: {error}", err=True)
    keep(stored, path, summary_frame(stored.results).to_csv(index=False, lineterminator="\n"))
    if before is not None:
        typer.echo(terminal(comparison_sections(compare_runs(before, stored))), nl=False)
    typer.echo(f"Accepted as {path}: review its summary.csv, and commit the folder.", err=True)
    return 0


app.command(cls=Command, help=help_of(accept))(accept)


def _name(stored: StoredRun) -> str:
    devices = dict.fromkeys(result.cell.device for result in stored.results)
    if len(devices) != 1:
        raise UsageError(f"That run is of {len(devices)} devices: give the baseline a NAME.")
    return f"{stored.run.model.replace('/', '--')}-{next(iter(devices))}"
