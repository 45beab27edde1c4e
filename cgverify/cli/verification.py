"""What a verifying command does once its options are understood: plan, run, keep, report."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cgverify.cli.exits import INTERRUPTED
from cgverify.environment import machine, pin_numerics, prefer_huge_pages, versions
from cgverify.errors import UsageError
from cgverify.plan import Axes, Subject, cells
from cgverify.records import Cell, CellResult, Run, Verdict
from cgverify.store import RunFolder


@dataclass(frozen=True)
class Verification:
    """A verification of one checkpoint, ready to run."""

    model: str
    weights: str
    axes: Axes
    threads: int | None
    verbosity: int
    keep_tensors: str = "failed"

    def run(self, *, output: Path | None, resume: bool, stop_at_failure: bool, format: str, quiet: bool) -> int:
        """Run it, print the report on stdout, and return the exit code."""
        if resume and output is None:
            raise UsageError("--resume continues the run in --output: give the folder.")
        prefer_huge_pages()
        if self.verbosity == 0:
            hush_libraries()
        from cgverify.candidate import find
        from cgverify.checkpoint.resolve import resolve
        from cgverify.cli.forecast import forecast
        from cgverify.evidence import with_evidence
        from cgverify.execute.serial import require_devices, run

        require_devices(self.axes.devices)
        with contextlib.redirect_stdout(sys.stderr):
            candidates = {name: find(name) for name in self.axes.candidates}
        source = resolve(self.model, self.weights)
        subject = Subject(
            model=_name(self.model),
            weights=source.digest,
            n_layers=source.config.n_layer,
            rotary_dim=source.config.rotary_dim,
            n_positions=source.config.n_positions,
        )
        plan = cells(subject, self.axes)
        takes = forecast(source, subject, self.axes)
        sources = {name: candidate.source for name, candidate in candidates.items()}
        described = self._describe(source.origin, source.digest, sources, pin_numerics(self.threads))
        path = output or _new_folder(subject.model)
        folder, finished = RunFolder.resume(path, described) if resume else (RunFolder.create(path, described), [])
        if not quiet:
            note = f"{len(finished)} cells are finished already. " if finished else ""
            typer.echo(
                f"{subject.model}, weights {source.origin}: {len(plan)} cells, {takes}. {note}Run folder {path}",
                err=True,
            )
        done = {result.cell.id for result in finished if result.verdict is not Verdict.ERROR}  # errors are tried again
        left = sum(cell.id not in done for cell in plan)
        results, interrupted = list(finished), False
        try:
            # What candidates print must not stand in the report.
            with contextlib.redirect_stdout(sys.stderr):
                keep = partial(with_evidence, folder=path, kept=self.keep_tensors)
                for result in with_progress(run(plan, source, candidates, keep, done), left, quiet):
                    folder.append(result)
                    results.append(result)
                    if stop_at_failure and result.verdict.fails:
                        break
        except KeyboardInterrupt:
            interrupted = True
        finally:
            folder.close()
        return _report(folder.run, path, results, plan, format, interrupted)

    def _describe(self, origin: str, digest: str, sources: dict[str, str], numerics: dict[str, Any]) -> Run:
        return Run(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command="all-components",
            model=_name(self.model),
            weights_origin=origin,
            weights_digest=digest,
            settings={
                "model": self.model,
                "weights": self.weights,
                **asdict(self.axes),
                "candidate_sources": sources,
                "keep_tensors": self.keep_tensors,
            },
            environment={"versions": versions(), "machine": machine(), "numerics": numerics},
        )


def _report(
    run: Run, path: Path, results: Iterable[CellResult], plan: list[Cell], format: str, interrupted: bool
) -> int:
    from cgverify.report import as_json, table
    from cgverify.report.frames import findings_frame, in_plan_order, write_csv
    from cgverify.report.outcome import exit_code

    ordered = in_plan_order(results, plan)
    write_csv(path, ordered)
    if format == "json":
        typer.echo(as_json.render(run, ordered))
    elif format == "csv":
        typer.echo(findings_frame(ordered).to_csv(index=False), nl=False)
    else:
        table.show(Console(), run, ordered)
    if interrupted:
        typer.echo(
            f"Interrupted after {len(ordered)} of {len(plan)} cells: --output {path} --resume goes on.", err=True
        )
        return INTERRUPTED
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


def _name(model: str) -> str:
    """What a checkpoint is called in reports: a folder's last part, else the name as it is."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def _new_folder(model: str) -> Path:
    """`reports/MODEL-TIME`, with a number behind it where two runs start in one second."""
    stem = f"{model.replace('/', '--')}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    path, number = Path("reports") / stem, 2
    while path.exists():
        path, number = Path("reports") / f"{stem}-{number}", number + 1
    return path


def hush_libraries() -> None:
    """Libraries warn of things that are no concern of the user's; -v lets them."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    if not sys.stderr.isatty():
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
