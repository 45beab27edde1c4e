"""`cgverify report`: a finished run in any format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cgverify.cli import completion, options
from cgverify.cli.command import command
from cgverify.cli.options import known, shown
from cgverify.common.errors import UsageError
from cgverify.report.formats import FORMATS, PIVOT_FORMATS, PIVOTS, WITH_BASELINE
from cgverify.runs.atomic import replace_file

Baseline = Annotated[
    Path | None,
    shown(
        "baseline",
        f"A run folder or baseline to show changes from, with --format {' or '.join(WITH_BASELINE)}.",
        shows="RUN",
        completes=completion.run_folders,
    ),
]
Output = Annotated[Path | None, shown("output", "The file to write. stdout by default.", shows="FILE")]
By = Annotated[
    str | None,
    shown("by", f"Show the run along one axis: {', '.join(PIVOTS)}.", shows="AXIS", completes=completion.names(PIVOTS)),
]


@command
def report(
    *,
    context: typer.Context,
    run: options.RunFolder,
    format: options.Format = "table",
    by: By = None,
    baseline: Baseline = None,
    output: Output = None,
    verbose: options.Verbose = 0,  # noqa: ARG001  read by @command
) -> int:
    """Render a finished run again, whole or along one axis.

    Examples:
      cgverify report RUN
      cgverify report RUN --format html --output report.html
      cgverify report RUN --by dtype

    Exit codes: 0 whatever the run found, 2 bad usage.
    """
    known("format", [format], FORMATS)
    if by is not None:
        known("by", [by], PIVOTS)
        if format not in PIVOT_FORMATS:
            raise UsageError(f"--by cannot be shown as {format}: use --format {', '.join(PIVOT_FORMATS)}.")
    if baseline is not None and (by is not None or format not in WITH_BASELINE):
        source = context.get_parameter_source("baseline")
        if source is None or source.name != "ENVIRONMENT":
            raise UsageError(
                f"--baseline needs --format {' or '.join(WITH_BASELINE)} and no --by; see also cgverify compare."
            )
        baseline = None  # the environment sets it for every report, also for those that cannot show it

    from cgverify.report.formats import render_run
    from cgverify.report.pivot import pivot_report
    from cgverify.report.render import render
    from cgverify.runs.baseline import load_stored_run

    stored = load_stored_run(run)
    if by is None:
        text = render_run(format, stored.run, stored.results, None if baseline is None else load_stored_run(baseline))
    else:
        text = render(format, pivot_report(stored.run, stored.results, by))
    if output is None:
        typer.echo(text, nl=False)
        return 0
    try:
        _write(output, text)
    except OSError as error:
        raise UsageError(f"Cannot write {output}: {error.strerror}. Give another --output.") from error
    return 0


def _write(output: Path, text: str) -> None:
    """Write a file completely or leave it as it was. A pipe or a device is written directly."""
    if output.exists() and not output.is_file():
        output.write_text(text, encoding="utf-8")
    else:
        replace_file(output.resolve(), text.encode())
