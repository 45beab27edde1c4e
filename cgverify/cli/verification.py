"""What a verifying command does once its options are understood: plan, run, keep, report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cgverify.cli.exits import INTERRUPTED
from cgverify.common.environment import hush_libraries, prefer_huge_pages, uncollected
from cgverify.common.errors import CgverifyError, UsageError
from cgverify.common.records import CellResult, Run
from cgverify.common.streams import stdout_is_ours
from cgverify.plan.cells import Axes
from cgverify.runs.reading import require_new
from cgverify.runs.request import ExecutionOptions, RunRequest, one_checkpoint

if TYPE_CHECKING:  # what imports torch is imported after `make_ready`
    from cgverify.runs.prepare import PreparedRun
    from cgverify.runs.session import RunSession


@dataclass(frozen=True)
class OutputOptions:
    """Where a run goes to, what it begins with, and when it ends."""

    output: Path | None = None
    resume: bool = False
    rerun_failed: bool = False
    stop_at_failure: bool = False
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.resume or self.rerun_failed) and self.output is None:
            option = "--resume" if self.resume else "--rerun-failed"
            raise UsageError(f"{option} continues the run in --output: give the folder.")
        if self.output is not None and not (self.resume or self.rerun_failed):
            require_new(self.output)  # told again when the folder is locked; here, before seconds of imports

    def begin(self, prepared: PreparedRun) -> RunSession:
        """The run, new or continued."""
        from cgverify.runs.folder import new_folder
        from cgverify.runs.session import RunSession

        path = self.output or new_folder(prepared.run.model)
        if self.rerun_failed:
            return RunSession.rerun_failed(prepared, path)
        return RunSession.resume(prepared, path) if self.resume else RunSession.start(prepared, path)


def make_ready(verbosity: int) -> None:
    """Import torch and its company, after what must be set before."""
    prefer_huge_pages()
    if verbosity == 0:
        hush_libraries()
    with uncollected():
        import cgverify.runs.session  # noqa: F401


def run(order: RunRequest, options: ExecutionOptions, course: OutputOptions, *, format: str, quiet: bool) -> int:
    """Run what is asked for, print the report on stdout, and return the exit code."""
    from cgverify.runs.prepare import prepare

    started = time.monotonic()
    with stdout_is_ours():
        prepared = prepare(order, options)
    session = course.begin(prepared)
    try:
        if not quiet:
            _announce(session)
        prepared.require_cells()
        ended = _carry_out(session, course, started, quiet)
    finally:
        session.folder.close()
    code = report(session.folder.run, session.folder.path, session.ordered, format, detailed=options.warnings)
    if ended is None:
        return code
    typer.echo(
        f"{ended} after {len(session.ordered)} of {len(prepared.plan)} cells: "
        f"--output {session.folder.path} --resume goes on.",
        err=True,
    )
    return INTERRUPTED if ended == "Interrupted" else code or CgverifyError.exit_code


def run_one(
    command: str,
    model: str,
    weights: str,
    axes: Axes,
    course: OutputOptions,
    *,
    prompt: str | None,
    tokens: Path | None,
    threads: int | None,
    jobs: int,
    scheduler: str | None = None,
    allow: tuple[str, ...],
    keep_tensors: str,
    format: str,
    quiet: bool,
    verbose: int,
) -> int:
    """`run` of axes over one checkpoint, which must be had, as must the devices."""
    execution = ExecutionOptions(
        threads=threads, jobs=jobs, scheduler=scheduler, allow=allow, keep_tensors=keep_tensors, warnings=verbose > 0
    )
    make_ready(verbose)
    from cgverify.verification.checkpoint_verifier import require_devices

    require_devices(axes.devices)
    order = one_checkpoint(command, model, weights, axes, prompt, tokens)
    return run(order, execution, course, format=format, quiet=quiet)


def _announce(session: RunSession) -> None:
    prepared, finished = session.prepared, len(session.results)
    note = f"{finished} cells are finished already. " if finished else ""
    run = prepared.run
    shard = f", shard {prepared.options.shard}" if prepared.options.shard else ""
    typer.echo(
        f"{run.model}, weights {run.weights_origin}{shard}: {len(prepared.plan)} cells, {prepared.forecast}. {note}"
        f"Run folder {session.folder.path}",
        err=True,
    )
    for checkpoint in run.checkpoints:
        if checkpoint.problem:
            typer.echo(f"{checkpoint.asked} is left out: {checkpoint.problem}", err=True)


def _carry_out(session: RunSession, course: OutputOptions, started: float, quiet: bool) -> str | None:
    """Take results as they come; returns why it ended before all were there, if it did so unasked."""
    deadline = None if course.max_minutes is None else started + 60 * course.max_minutes
    total = sum(len(batch.cells) for batch in session.remaining)
    # A batch that was run in part is run whole: what had failed in it before must not stop it there again.
    failed_before = {cell for cell, result in session.results.items() if result.verdict.fails}
    ended = "Time is up"
    try:
        with stdout_is_ours(), contextlib.closing(session.carry_out(deadline)) as results:
            for result in with_progress(results, total, quiet):
                if course.stop_at_failure and result.verdict.fails and result.cell.id not in failed_before:
                    ended = "Stopped at a failure"
                    break
    except KeyboardInterrupt:
        return "Interrupted"
    return None if len(session.ordered) == len(session.prepared.plan) else ended


def report(run: Run, path: Path, ordered: Sequence[CellResult], format: str, *, detailed: bool = False) -> int:
    """Write a run's CSV files, print its report on stdout, and return its exit code.

    Args:
        detailed: also tell bits by head, and what forwards and judging took.
    """
    from cgverify.report.frames import write_csv
    from cgverify.runs.folder import storage_error

    try:
        write_csv(path, ordered)
    except OSError as error:
        raise storage_error(path, error) from error
    return show(run, ordered, format, detailed=detailed)


def show(run: Run, ordered: Sequence[CellResult], format: str, *, detailed: bool = False) -> int:
    """The same, but for the CSV files."""
    from cgverify.report import screen
    from cgverify.report.formats import render
    from cgverify.report.outcome import exit_code, times

    if detailed and format == "table" and run.command not in screen.TABLES:
        typer.echo(screen.render(run, ordered, screen.VERBOSE), nl=False)
    else:
        typer.echo(render(format, run, ordered), nl=False)
    if detailed:
        typer.echo(times(ordered).sentence, err=True)
    return exit_code(ordered)


def with_progress(results: Iterator[CellResult], total: int, quiet: bool) -> Iterator[CellResult]:
    """The same results, with a bar on stderr where that is a terminal."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield from results
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("verifying", total=total)
        for result in results:
            progress.update(task, advance=1, description=result.cell.component)
            yield result
