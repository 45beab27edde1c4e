"""`cgverify report`: a run that was kept, shown again in any format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cgverify.cli import options
from cgverify.cli.exits import exit_codes
from cgverify.cli.options import FORMATS, known
from cgverify.common.errors import UsageError
from cgverify.report.formats import PIVOT_FORMATS, PIVOTS, WITH_BASELINE
from cgverify.runs.atomic import replace_file

Folder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder or a baseline.")]
Baseline = Annotated[
    Path | None,
    typer.Option(
        help=f"A run folder or a baseline to show changes from; for {', '.join(WITH_BASELINE)}.",
        envvar="CGVERIFY_BASELINE",
    ),
]
Output = Annotated[Path | None, typer.Option(help="The file to write; stdout without it.", envvar="CGVERIFY_OUTPUT")]
By = Annotated[str | None, typer.Option(help=f"Along one axis: {', '.join(PIVOTS)}.", envvar="CGVERIFY_BY")]


def report(
    context: typer.Context,
    run: Folder,
    format: options.Format = "table",
    by: By = None,
    baseline: Baseline = None,
    output: Output = None,
    verbose: options.Verbose = 0,
) -> None:
    """Show a run again, whole or along one axis. What it found is told, and not judged by the exit code.

    Exit codes: 0 shown, 2 bad usage.
    """
    with exit_codes(verbose):
        known("format", [format], FORMATS)
        if by is not None:
            known("by", [by], PIVOTS)
            if format not in PIVOT_FORMATS:
                raise UsageError(f"--by is shown as {', '.join(PIVOT_FORMATS)}, and not as {format}.")
        if baseline is not None and (by is not None or format not in WITH_BASELINE):
            source = context.get_parameter_source("baseline")
            if source is None or source.name != "ENVIRONMENT":
                raise UsageError(
                    f"--baseline is shown as {', '.join(WITH_BASELINE)} and without --by; see also cgverify compare."
                )
            baseline = None  # the environment's, which says so for every report

        from cgverify.runs.baseline import load_stored_run

        stored = load_stored_run(run)
        if by is None:
            from cgverify.report.formats import render

            text = render(format, stored.run, stored.results, None if baseline is None else load_stored_run(baseline))
        else:
            from cgverify.report.pivot import render as render_pivot

            text = render_pivot(format, stored.run, stored.results, by)
        if output is None:
            typer.echo(text, nl=False)
            return
        try:
            _write(output, text)
        except OSError as error:
            raise UsageError(f"Cannot write {output}: {error.strerror}. Give another --output.") from error


def _write(output: Path, text: str) -> None:
    """Write a file so that it is whole or as it was before; a pipe or a device takes what it is given."""
    if output.exists() and not output.is_file():
        output.write_text(text, encoding="utf-8")
    else:
        replace_file(output.resolve(), text.encode())
