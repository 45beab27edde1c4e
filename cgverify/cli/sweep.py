"""`cgverify sweep`: a plan from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cgverify.cli import completion, options
from cgverify.cli.command import command
from cgverify.cli.options import SHOWN, WHAT, kept, work
from cgverify.common.errors import UsageError
from cgverify.plan.cells import Shard
from cgverify.plan.shipped_plans import plan_file, purpose, shipped_plans
from cgverify.plan.yaml_plan import load_plan
from cgverify.runs.request import sweep_of

DRY_RUN_FORMATS = ("table", "csv", "json")


def _list_plans(wanted: bool) -> None:
    if not wanted:
        return
    table = Table(show_header=False, box=None)
    for name, path in shipped_plans().items():
        table.add_row(name, purpose(path))
    Console().print(table)
    raise typer.Exit


Config = Annotated[
    Path, typer.Argument(help="A file in YAML, or a name of --list.", metavar="PLAN", autocompletion=completion.plans)
]
ListPlans = Annotated[
    bool,
    typer.Option(
        "--list",
        help="List the plans that come with cgverify.",
        callback=_list_plans,
        is_eager=True,
        rich_help_panel=WHAT,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="List the cells and their estimated cost, and verify nothing.", rich_help_panel=SHOWN
    ),
]
ShardText = Annotated[
    str | None,
    work("shard", "Verify only part I of N. `cgverify merge` merges all parts into one run.", shows="I/N"),
]
RerunFailed = Annotated[
    bool, kept("rerun-failed", "Continue the run in --output, and run its failures and errors again.")
]
MaxMinutes = Annotated[
    float | None, work("max-minutes", "Stop after so many minutes; --resume continues the run.", shows="N", at_least=0)
]


@command
def sweep(
    *,
    config: Config,
    list_plans: ListPlans = False,  # noqa: ARG001  its callback lists them
    shard: ShardText = None,
    scheduler: options.Scheduler = None,
    max_minutes: MaxMinutes = None,
    rerun_failed: RerunFailed = False,
    run: options.RunOptions,
    dry_run: DryRun = False,
) -> int:
    """Verify a plan: checkpoints × candidates × dtypes × devices × rotary_dims × attentions × cases × seeds.

    A checkpoint or a device that is missing here is reported as an error, and the rest of the plan is run.

    Examples:
      cgverify sweep smoke
      cgverify sweep plan.yaml --dry-run
      cgverify sweep nightly --shard 1/4 --output shard-1

    Exit codes: 0 all tensors agree, 1 a parity failure, 2 the plan or an option is wrong, 3 something could not be run
    or time was up, 5 nothing was compared, 130 interrupted.
    """
    config = plan_file(config)
    plan = load_plan(config)
    part = None if shard is None else _shard(shard)
    run.check(rerun_failed=rerun_failed)
    request, execution = sweep_of(plan, config.stem, config), run.execution(scheduler=scheduler, shard=part)

    from cgverify.cli.running import carry_out, import_libraries

    if dry_run:
        if run.format not in DRY_RUN_FORMATS:
            raise UsageError(f"--dry-run prints table, csv or json, not {run.format}.")
        import_libraries(run.verbose)

        from cgverify.report.dry_run import dry_run_report
        from cgverify.report.render import render
        from cgverify.runs.prepare import outline

        typer.echo(render(run.format, dry_run_report(outline(request, execution))), nl=False)
        return 0
    return carry_out(request, execution, run, rerun_failed=rerun_failed, max_minutes=max_minutes)


def _shard(text: str) -> Shard:
    """Parse a shard: `2/4` is the second of four."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UsageError(f"--shard {text!r} is not a part of a plan: write 1/4 to 4/4 for four parts.")
    return Shard(int(index), int(count))
