"""Carry out a run: notices and progress go to stderr, the report goes to stdout."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from cgverify.checkpoint.digests import start_digests
from cgverify.cli.command import INTERRUPTED
from cgverify.cli.options import RunOptions
from cgverify.common.devices import require_devices
from cgverify.common.errors import CgverifyError
from cgverify.common.process import hush_libraries, prefer_huge_pages, uncollected
from cgverify.common.records import CellResult, Run
from cgverify.common.streams import stdout_to_stderr
from cgverify.runs.request import ExecutionOptions, RunRequest

if TYPE_CHECKING:  # these import torch, which `import_libraries` prepares for
    from cgverify.runs.session import RunSession


def import_libraries(verbosity: int) -> None:
    """Import torch and what builds on it, after the settings that must come first."""
    prefer_huge_pages()
    if verbosity == 0:
        hush_libraries()
    with uncollected():
        import cgverify.runs.session  # noqa: F401


def carry_out(
    request: RunRequest,
    execution: ExecutionOptions,
    options: RunOptions,
    *,
    rerun_failed: bool = False,
    max_minutes: float | None = None,
) -> int:
    """Run a request, print its report, and return the exit code."""
    deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
    start_digests(request.models)
    import_libraries(options.verbose)

    from cgverify.report.frames import write_csv
    from cgverify.runs.folder import new_folder, storage_error
    from cgverify.runs.prepare import prepare
    from cgverify.runs.session import RunSession

    if request.config is None:
        for checkpoint in request.checkpoints:
            require_devices(checkpoint.axes.devices)
    with stdout_to_stderr():
        prepared = prepare(request, execution)
    path = options.output or new_folder(prepared.run.model)
    start = RunSession.rerun_failed if rerun_failed else RunSession.resume if options.resume else RunSession.start
    session = start(prepared, path)
    try:
        if not options.quiet:
            _announce(session)
        prepared.require_cells()
        ended = _verify(session, options, deadline)
    finally:
        session.folder.close()
    try:
        write_csv(path, session.ordered)
    except OSError as error:
        raise storage_error(path, error) from error
    code = show(session.folder.run, session.ordered, options.format, detailed=options.verbose > 0)
    if ended is None:
        return code
    typer.echo(
        f"{ended} after {len(session.ordered)} of {len(prepared.plan)} cells: "
        f"--output {path} --resume continues the run.",
        err=True,
    )
    return INTERRUPTED if ended == "Interrupted" else code or CgverifyError.exit_code


def _announce(session: RunSession) -> None:
    prepared, finished = session.prepared, len(session.results)
    note = f"{finished} cells are finished already. " if finished else ""
    run = prepared.run
    processes = f"{prepared.jobs} processes, " if prepared.jobs > 1 else ""
    shard = f", shard {prepared.options.shard}" if prepared.options.shard else ""
    typer.echo(
        f"{run.model}, weights {run.weights_origin}{shard}: {len(prepared.plan)} cells, "
        f"{processes}about {prepared.peak_bytes / 1e9:.1f} GB of memory. {note}Run folder {session.folder.path}",
        err=True,
    )
    for checkpoint in run.checkpoints:
        if checkpoint.problem:
            typer.echo(f"{checkpoint.asked} is left out: {checkpoint.problem}", err=True)


def _verify(session: RunSession, options: RunOptions, deadline: float | None) -> str | None:
    """Verify the cells that are left. Return why this ended early, or None if every cell has a result."""
    from cgverify.report.progress import RunProgress

    # A batch that was run in part is run whole: a cell of it that failed before must not stop the run again.
    failed_before = {cell for cell, result in session.results.items() if result.verdict.fails}
    ended = "Time is up"
    progress = RunProgress(console(options.quiet), session.remaining)
    try:
        with (
            stdout_to_stderr(),
            contextlib.closing(session.carry_out(deadline, progress.observe)) as results,
            progress,  # after the workers are forked: it starts a thread
        ):
            for result in progress.through(results):
                if options.exitfirst and result.verdict.fails and result.cell.id not in failed_before:
                    ended = "Stopped at a failure"
                    break
    except KeyboardInterrupt:
        return "Interrupted"
    return None if len(session.ordered) == len(session.prepared.plan) else ended


def show(run: Run, results: Sequence[CellResult], format: str, *, detailed: bool = False) -> int:
    """Print the report of a run, and return the run's exit code.

    Args:
        results: in report order.
        detailed: also report bits by head, and the time that forwards and the oracle took.
    """
    from cgverify.report.formats import render_run
    from cgverify.report.outcome import exit_code, times_line
    from cgverify.report.render import render
    from cgverify.report.run import DETAILED, TABLES, run_report

    if detailed and format == "table" and run.command not in TABLES:
        text = render(format, run_report(run, results, tables=DETAILED))
    else:
        text = render_run(format, run, results)
    typer.echo(text, nl=False)
    if detailed:
        typer.echo(times_line(results), err=True)
    return exit_code(results)


def console(quiet: bool) -> Console | None:
    """Return where progress is shown: stderr, if it is a terminal."""
    stderr = Console(stderr=True)
    return stderr if stderr.is_terminal and not quiet else None
