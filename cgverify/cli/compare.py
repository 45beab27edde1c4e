"""`cgverify compare`: a run beside its baseline, or two sides of one axis beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cgverify.cli import options
from cgverify.cli.exits import exit_codes
from cgverify.cli.options import known, split
from cgverify.common.errors import UsageError

NOTHING_COMPARED = 5
FORMATS = ("table", "json", "csv", "markdown", "github")
AXIS = "device, dtype, rotary_dim, candidate; or run."

What = Annotated[
    list[str],
    typer.Argument(metavar="BASELINE RUN | A B RUN [RUN]", help="Run folders or baselines; with --across two values."),
]
AcrossAxis = Annotated[str | None, typer.Option("--across", help=AXIS, envvar="CGVERIFY_ACROSS")]
FailOn = Annotated[
    list[str] | None,
    typer.Option(
        help="worse, diverged, missing-cells, r:2x; by default worse,missing-cells.", envvar="CGVERIFY_FAIL_ON"
    ),
]
Format = Annotated[str, typer.Option(help=f"On stdout: {', '.join(FORMATS)}.", envvar="CGVERIFY_FORMAT")]


def compare(
    what: What,
    across: AcrossAxis = None,
    fail_on: FailOn = None,
    format: Format = "table",
    verbose: options.Verbose = 0,
) -> None:
    """Tell what got worse, what got better and what is no longer there between a baseline and a run.

    With --across, cells that are equal in all but one axis stand side by side, with their errors against the oracle:

    compare --across dtype float32 bfloat16 RUN: two slices of one run

    compare --across device cpu cuda RUN RUN: one slice of each

    compare --across run RUN RUN: the equal cells of two runs, made with another number of threads, say

    Exit codes: 0 no regression, 1 a regression, 2 bad usage, 5 the runs have no cell in common.
    """
    with exit_codes(verbose):
        if across is None:
            known("format", [format], FORMATS)
            code = _with_baseline(what, ["worse", "missing-cells"] if fail_on is None else split(fail_on), format)
        else:
            known("format", [format], [name for name in FORMATS if name != "github"])
            if fail_on is not None:
                raise UsageError("--fail-on is for a baseline: --across shows two sides of which neither is right.")
            code = _across(across, what, format)
    raise typer.Exit(code)


def _with_baseline(what: list[str], fail_on: list[str], format: str) -> int:
    from cgverify.report.comparison import render
    from cgverify.runs.comparison import compare_runs
    from cgverify.runs.comparison.criteria import criteria, regressions

    asked = criteria(fail_on)
    if len(what) != 2:
        raise UsageError(f"compare takes a BASELINE and a RUN, and {len(what)} folders are given.")
    comparison = compare_runs(*what)
    broken = regressions(comparison, asked)
    typer.echo(render(format, comparison, broken), nl=False)
    if broken:
        return 1
    return _nothing_in_common(what) if comparison.cells == 0 else 0


def _across(axis: str, what: list[str], format: str) -> int:
    from cgverify.report.across import render
    from cgverify.runs.baseline import load_stored_run
    from cgverify.runs.comparison.across import AXES, across, across_runs

    known("across", [axis], (*AXES, "run"))
    if axis == "run":
        if len(what) != 2:
            raise UsageError(f"compare --across run takes two run folders, and {len(what)} are given.")
        names, folders = (what[0], what[1]), what
        found = across_runs(names, (load_stored_run(Path(folders[0])), load_stored_run(Path(folders[1]))))
    else:
        if len(what) not in (3, 4):
            raise UsageError(
                f"compare --across {axis} takes two values and one or two run folders: "
                f"compare --across {axis} A B RUN [RUN]."
            )
        first = load_stored_run(Path(what[2]))
        second = load_stored_run(Path(what[3])) if len(what) == 4 else first
        found = across(axis, (what[0], what[1]), (first, second))
    typer.echo(render(format, found), nl=False)
    return 0 if found.cells else _nothing_in_common(what)


def _nothing_in_common(what: list[str]) -> int:
    typer.echo(f"Error: {' and '.join(what)} have no cell in common, so nothing was compared.", err=True)
    return NOTHING_COMPARED
