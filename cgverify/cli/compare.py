"""`cgverify compare`: a run with its baseline, or two sides of one axis."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cgverify.cli import completion, options
from cgverify.cli.command import command
from cgverify.cli.options import format_option, known, option, split
from cgverify.common.errors import UsageError
from cgverify.runs.comparison.across import AXES
from cgverify.runs.comparison.criteria import NAMES

FAILED, NOTHING_COMPARED = 1, 5
FORMATS = ("table", "json", "csv", "markdown", "github")
COMPARED = "What to compare"

Operands = Annotated[
    list[str],
    typer.Argument(
        metavar="BASELINE RUN",
        help="Run folders or baselines. With --across first the two values to compare, if they are in one run.",
        autocompletion=completion.run_folders,
    ),
]
AcrossAxis = Annotated[
    str | None,
    option(
        "across",
        f"Compare two sides of an axis: {', '.join(AXES)}; or run.",
        shows="AXIS",
        panel=COMPARED,
        completes=completion.names((*AXES, "run")),
    ),
]
FailOn = Annotated[
    list[str] | None,
    option(
        "fail-on",
        f"What exits with 1: {', '.join(NAMES)}. By default worse,missing-cells.",
        shows="CHANGE,…",
        panel=COMPARED,
        completes=completion.names(NAMES),
    ),
]
Format = Annotated[str, format_option(FORMATS)]


@command
def compare(
    *,
    what: Operands,
    across: AcrossAxis = None,
    fail_on: FailOn = None,
    format: Format = "table",
    verbose: options.Verbose = 0,  # noqa: ARG001  read by @command
) -> int:
    """Report what got worse, what got better and what is missing between a baseline and a run.

    With --across, cells that are equal in all but one axis are compared, with their errors against the oracle. Give two
    values and one run, or two values and a run for each; --across run takes two runs.

    Examples:
      cgverify compare reports/codegen-nano-cpu RUN
      cgverify compare reports/codegen-nano-cpu RUN --fail-on r:2x
      cgverify compare --across dtype float32 bfloat16 RUN

    Exit codes: 0 no regression, 1 a regression, 2 bad usage, 5 the runs have no cell in common.
    """
    if across is None:
        known("format", [format], FORMATS)
        return _with_baseline(what, ["worse", "missing-cells"] if fail_on is None else split(fail_on), format)
    known("format", [format], [name for name in FORMATS if name != "github"])
    if fail_on is not None:
        raise UsageError("--fail-on needs a baseline: --across compares two sides of which neither is the baseline.")
    return _across(across, what, format)


def _with_baseline(what: list[str], fail_on: list[str], format: str) -> int:
    from cgverify.report.comparison import comparison_report
    from cgverify.report.github import comparison_annotations
    from cgverify.report.render import render
    from cgverify.runs.comparison import compare_runs
    from cgverify.runs.comparison.criteria import criteria, regressions

    asked = criteria(fail_on)
    if len(what) != 2:
        raise UsageError(f"compare takes a BASELINE and a RUN, but {len(what)} folders are given.")
    comparison = compare_runs(*what)
    broken = regressions(comparison, asked)
    if format == "github":
        text = comparison_annotations(comparison, broken)
    else:
        text = render(format, comparison_report(comparison, broken))
    typer.echo(text, nl=False)
    if broken:
        return FAILED
    return 0 if comparison.cells else _nothing_in_common(what)


def _across(axis: str, what: list[str], format: str) -> int:
    from cgverify.report.across import across_report
    from cgverify.report.render import render
    from cgverify.runs.baseline import load_stored_run
    from cgverify.runs.comparison.across import across, across_runs

    known("across", [axis], (*AXES, "run"))
    if axis == "run":
        if len(what) != 2:
            raise UsageError(f"compare --across run takes two run folders, but {len(what)} are given.")
        first, second = what
        found = across_runs((first, second), (load_stored_run(Path(first)), load_stored_run(Path(second))))
    else:
        if len(what) not in (3, 4):
            raise UsageError(
                f"compare --across {axis} takes two values and one or two run folders: "
                f"compare --across {axis} A B RUN [RUN]."
            )
        runs = [load_stored_run(Path(folder)) for folder in what[2:]]
        found = across(axis, (what[0], what[1]), (runs[0], runs[-1]))
    typer.echo(render(format, across_report(found)), nl=False)
    return 0 if found.cells else _nothing_in_common(what)


def _nothing_in_common(what: list[str]) -> int:
    typer.echo(f"Error: {' and '.join(what)} have no cell in common, so nothing was compared.", err=True)
    return NOTHING_COMPARED
