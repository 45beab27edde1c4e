"""`cgverify sweep`: a plan from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cgverify.cli import options
from cgverify.cli.exits import exit_codes
from cgverify.cli.options import FORMATS, KEPT, known
from cgverify.common.errors import UsageError
from cgverify.plan.cells import Shard
from cgverify.plan.yaml_plan import load_plan
from cgverify.runs.request import ExecutionOptions, sweep_of

_RUN = "How to run"

Config = Annotated[Path, typer.Argument(help="A plan in YAML, such as configs/smoke.yaml.", metavar="CONFIG")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="List the cells with their estimated cost, and verify nothing.")
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        help="I/N: the I-th of N parts, by layers; `cgverify merge` puts them together.",
        envvar="CGVERIFY_SHARD",
        rich_help_panel=_RUN,
    ),
]
RerunFailed = Annotated[
    bool,
    typer.Option(
        "--rerun-failed",
        help="Continue the run in --output, and run again what failed in it or could not be run.",
        envvar="CGVERIFY_RERUN_FAILED",
        rich_help_panel=_RUN,
    ),
]
MaxMinutes = Annotated[
    float | None,
    typer.Option(min=0, help="Stop then; --resume goes on.", envvar="CGVERIFY_MAX_MINUTES", rich_help_panel=_RUN),
]


def sweep(
    config: Config,
    dry_run: DryRun = False,
    shard: ShardOption = None,
    threads: options.Threads = None,
    jobs: options.Jobs = 1,
    scheduler: options.Scheduler = None,
    allow: options.Allow = None,
    output: options.Output = None,
    keep_tensors: options.KeepTensors = "failed",
    resume: options.Resume = False,
    rerun_failed: RerunFailed = False,
    max_minutes: MaxMinutes = None,
    format: options.Format = "table",
    exitfirst: options.StopAtFailure = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Verify what a plan says: checkpoints × candidates × dtypes × devices × rotary_dims × cases × seeds.

    What a checkpoint or a device that is not here leaves undone is an error, and the rest is run.

    Exit codes: 0 all held, 1 a parity failure, 2 a plan or an option that cannot be, 3 something could not be run or
    time was up, 5 nothing was compared, 130 interrupted.
    """
    with exit_codes(verbose):
        planned = load_plan(config)
        part = None if shard is None else _shard(shard)
        known("format", [format], FORMATS)
        known("keep-tensors", [keep_tensors], KEPT)
        shortcuts = tuple(options.shortcuts(allow))

        from cgverify.cli.verification import OutputOptions, make_ready, run

        course = OutputOptions(output, resume, rerun_failed, exitfirst, max_minutes)
        order = sweep_of(planned, config.stem, config)
        execution = ExecutionOptions(
            threads=threads,
            jobs=jobs,
            scheduler=scheduler,
            allow=shortcuts,
            shard=part,
            keep_tensors=keep_tensors,
            warnings=verbose > 0,
        )
        make_ready(verbose)
        if dry_run:
            from cgverify.cli.dry_run import show

            code = show(order, execution, format)
        else:
            code = run(order, execution, course, format=format, quiet=quiet)
    raise typer.Exit(code)


def _shard(text: str) -> Shard:
    """`2/4` is the second of four."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UsageError(f"--shard {text!r} is no part of a plan: write 1/4 to 4/4 for four parts.")
    return Shard(int(index), int(count))
