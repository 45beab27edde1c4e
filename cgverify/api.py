"""The functions that Python code calls to verify."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pandas as pd

from cgverify.bench.baseline import read as read_bench
from cgverify.bench.records import BenchRun
from cgverify.common.errors import UnknownNameError, UsageError
from cgverify.common.numerics import pin_numerics
from cgverify.common.process import only_new_objects_collected
from cgverify.common.records import IN_MEMORY, CellResult, Run
from cgverify.plan.batches import batches
from cgverify.plan.cells import plan
from cgverify.plan.shipped_plans import plan_file
from cgverify.plan.yaml_plan import SweepConfig, load_plan, parse_plan, plain
from cgverify.report.comparison import comparison_line, comparison_sections
from cgverify.report.frames import findings_frame, in_plan_order, summary_frame, write_csv
from cgverify.report.outcome import exit_code, failures, refusals, verdict_line
from cgverify.report.progress import RunProgress, notebook
from cgverify.runs import comparison
from cgverify.runs.baseline import load_stored_run
from cgverify.runs.comparison import LoadedRun
from cgverify.runs.comparison.changes import Comparison
from cgverify.runs.folder import new_folder
from cgverify.runs.reading import read_plan
from cgverify.runs.request import ExecutionOptions, one_checkpoint, sweep_of

if TYPE_CHECKING:  # a stored run is read without torch
    from matplotlib.figure import Figure
    from torch import nn

    from cgverify.verification.loaded_pair import LoadedPair

AXES = ("layers", "components", "cases", "attentions", "seeds", "batch_size", "seq_len")
"""The keys of a plan that `verify` accepts for a bridge and its reference."""
CHECKPOINT_AXES = (*AXES, "candidates", "dtypes", "devices", "rotary_dims")
"""The keys of a plan that `verify` accepts for a checkpoint."""
MOST_REASONS = 5
"""The failures that `Result.reasons` lists."""


@dataclass(frozen=True)
class Result:
    """A run and its results."""

    run: Run
    results: tuple[CellResult, ...]
    """In the plan's order."""
    folder: Path | None
    """The run folder; None if the run is not kept."""
    planned: int
    """The number of cells of the plan."""

    @cached_property
    def findings(self) -> pd.DataFrame:
        """One row per tap of every cell, with the columns of `findings.csv`."""
        return findings_frame(self.results)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row per component, setting and case, with the columns of `summary.csv`."""
        return summary_frame(self.results)

    @property
    def exit_code(self) -> int:
        """The exit code of the command line for this run."""
        code = exit_code(self.results)
        return code if code == 1 or len(self.results) == self.planned else 3

    @property
    def ok(self) -> bool:
        """Whether every cell was verified and passed."""
        return self.exit_code == 0

    def assert_ok(self) -> None:
        """Raise AssertionError, with a sentence for each failure, unless every cell was verified and passed."""
        if not self.ok:
            raise AssertionError("\n".join(self.reasons()))

    def __repr__(self) -> str:
        return f"<Result of {self.run.model}: {verdict_line(self.results)}>"

    def plot(self) -> Figure:
        """Return a matplotlib figure: the greatest r of each tap, and of each layer.

        Raises:
            UsageError: matplotlib is not installed.
        """
        from cgverify.report.plots import run_figure

        return run_figure(self.run, self.results)

    def _repr_html_(self) -> str:
        from cgverify.report.html.notebook import run_output

        return run_output(self.run, self.results, self.planned)

    def reasons(self) -> list[str]:
        """Return why the run is not `ok`: a sentence for each failure, up to `MOST_REASONS`. Empty if it is."""
        if self.ok:
            return []
        found = failures(self.results)
        reasons = [
            f"{failure.finding.verdict.value} {failure.cell.model} {failure.sentence}\n    {failure.command(self.run)}"
            for failure in found[:MOST_REASONS]
        ]
        if len(found) > MOST_REASONS:
            reasons.append(f"… and {len(found) - MOST_REASONS} more: see the findings.")
        if len(self.results) < self.planned:
            reasons.append(f"Only {len(self.results)} of {self.planned} cells were verified.")
        if not reasons:
            reasons.append(f"Nothing was compared: {'; '.join(refusals(self.results))}.")
        return reasons


class RunComparison(Comparison):
    """A comparison that a notebook shows."""

    def __repr__(self) -> str:
        return f"<RunComparison of {self.run.model}: {comparison_line(self, None)}>"

    def plot(self) -> Figure:
        """Return a matplotlib figure: the r of each tap whose verdict changed or whose r grew, in both runs.

        Raises:
            UsageError: matplotlib is not installed.
        """
        from cgverify.report.plots import comparison_figure

        return comparison_figure(self)

    def _repr_html_(self) -> str:
        from cgverify.report.html.notebook import sections_output

        return sections_output(comparison_sections(self))


@only_new_objects_collected()
def sweep(
    config: str | os.PathLike[str] | Mapping[str, Any],
    output: str | os.PathLike[str] | None = None,
    *,
    threads: int | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
    keep_tensors: str = "failed",
    resume: bool = False,
) -> Result:
    """Carry out a plan, as `cgverify sweep` does.

    Args:
        config: the path of a plan in YAML, the name of a plan of `cgverify sweep --list`, or the plan as a mapping.
        output: a new folder for the run; by default `reports/PLAN-TIME`.
        threads: torch threads in each process, also in this one. None leaves them, up to the number of processors.
        jobs: processes that share the work. With more than one, call this under `if __name__ == "__main__":`.
        scheduler: the address of a Dask scheduler whose workers do the work, such as `tcp://host:8786`.
        keep_tensors: the findings whose tensors are kept: `failed`, `all` or `none`.
        resume: continue the run that is in `output`.

    Raises:
        ConfigError: the plan is wrong.
        UsageError: another argument is wrong.
        CgverifyError: see `cgverify.common.errors`.
    """
    from cgverify.runs.prepare import prepare
    from cgverify.runs.session import RunSession
    from cgverify.verification.saved_tensors import KEEP

    _require_count("threads", threads)
    _require_count("jobs", jobs)
    if keep_tensors not in KEEP:
        raise UnknownNameError("keep_tensors", keep_tensors, KEEP)
    if isinstance(config, str | os.PathLike):
        file = plan_file(Path(config))
        described, name = load_plan(file), file.stem
    else:
        described, name = parse_plan(plain(config)), "sweep"
    options = ExecutionOptions(threads=threads, jobs=jobs, scheduler=scheduler, keep_tensors=keep_tensors)
    prepared = prepare(sweep_of(described, name), options)
    prepared.require_cells()
    path = Path(output) if output is not None else new_folder(prepared.run.model)
    session = RunSession.resume(prepared, path) if resume else RunSession.start(prepared, path)
    try:
        with RunProgress(notebook(), session.remaining) as progress:
            for _ in progress.through(session.carry_out(watch=progress.observe)):
                pass
    finally:
        session.folder.close()
    write_csv(path, session.ordered)
    return Result(session.folder.run, tuple(session.ordered), path, len(prepared.plan))


@overload
def verify(
    model: str | os.PathLike[str], /, *, weights: str = "auto", threads: int | None = None, **axes: Any
) -> Result: ...


@overload
def verify(bridge: nn.Module, reference: nn.Module, /, *, threads: int | None = None, **axes: Any) -> Result: ...


@only_new_objects_collected()
def verify(
    model_or_bridge: str | os.PathLike[str] | nn.Module,
    reference: nn.Module | None = None,
    /,
    *,
    weights: str = "auto",
    threads: int | None = None,
    **axes: Any,
) -> Result:
    """Verify a checkpoint, or a bridge in memory against its reference. The run is not kept.

    Args:
        model_or_bridge: a name of `cgverify models`, a folder or a hub id; or a `TransformerBridge`. The bridge may be
            in compatibility mode: then its processed weights are verified too (`cgverify.verification.compatibility`).
        reference: for a bridge: a `CodeGenForCausalLM` with equal weights, in its own memory, over which no bridge was
            booted, and which has no hooks of torch and no changed module. The dtype and device are those of both.
        weights: for a checkpoint: see `cgverify.checkpoint.resolve`.
        threads: torch threads in this process. None leaves them, up to the number of processors.
        axes: keys of a plan (`cgverify.plan.yaml_plan`): `AXES` for a bridge, `CHECKPOINT_AXES` for a checkpoint. For
            rules and limits use `cgverify.sweep`.

    Raises:
        PairError: bridge and reference cannot be compared. Nothing was verified.
        UsageError: another argument is wrong.
        CgverifyError: the checkpoint is not available.
    """
    from cgverify.verification.loaded_pair import LoadedPair

    _require_count("threads", threads)
    if isinstance(model_or_bridge, str | os.PathLike):
        if reference is not None:
            raise UsageError("verify takes a reference only for a bridge: leave it out if you give a model's name.")
        return _verify_checkpoint(model_or_bridge, weights, threads, axes)
    if reference is None:
        raise UsageError("verify takes a model's name, or a bridge and its reference.")
    if weights != "auto":
        raise UsageError("weights is for a model's name: a bridge and its reference have their weights in memory.")
    return _verify_pair(LoadedPair(model_or_bridge, reference), threads, axes)


def _verify_checkpoint(
    model: str | os.PathLike[str], weights: str, threads: int | None, axes: Mapping[str, Any]
) -> Result:
    from cgverify.runs.prepare import prepare
    from cgverify.runs.session import verify_batches

    _require_axes(axes, CHECKPOINT_AXES)
    config = parse_plan(plain({"models": {"model": model, "weights": weights}, **axes}))
    (request,) = config.requests()
    prepared = prepare(
        one_checkpoint("verify", request.model, request.weights, request.axes), ExecutionOptions(threads=threads)
    )
    with RunProgress(notebook(), prepared.batches) as progress:
        results = list(progress.through(verify_batches(prepared, prepared.batches, watch=progress.observe)))
    return Result(prepared.run, tuple(in_plan_order(results, prepared.cells)), None, len(prepared.cells))


def _verify_pair(pair: LoadedPair, threads: int | None, axes: Mapping[str, Any]) -> Result:
    from cgverify.checkpoint.lookup import FoundCheckpoints
    from cgverify.runs.prepare import describe_run

    for key in axes:
        if key in CHECKPOINT_AXES and key not in AXES:
            raise UsageError(f"{key} is that of the bridge and its reference: leave it out.")
    _require_axes(axes, AXES)
    own = {"models": IN_MEMORY, "candidates": "bridge", "dtypes": pair.dtype, "devices": pair.device}
    config = parse_plan(plain({**own, "cases": pair.plain_cases, **axes}))
    found = {(IN_MEMORY, "auto"): pair.checkpoint}
    cells = plan(config.requests(), found)
    pair.require(cells)
    settings = config.model_dump(mode="json")
    run = describe_run("verify", IN_MEMORY, FoundCheckpoints(found), settings, pin_numerics(threads))
    with RunProgress(notebook(), batches(cells, found.values())) as progress:
        results = in_plan_order(progress.through(pair.verify(cells)), cells)
    return Result(run, tuple(results), None, len(cells))


def load_run(folder: str | os.PathLike[str]) -> Result:
    """Load a run from its folder, or a baseline.

    The run may be of an older cgverify. It may have been interrupted, or may still be running.

    Raises:
        RunFolderError: the folder has no run, or a damaged one, or one of a newer cgverify.
    """
    path = Path(folder)
    stored = load_stored_run(path)
    return Result(stored.run, tuple(stored.results), path, len(read_plan(path)) or len(stored.results))


def load_bench(folder: str | os.PathLike[str]) -> BenchRun:
    """Load a benchmark from its folder, or from its bench.json.

    Raises:
        RunFolderError: there is no benchmark, or a damaged one.
    """
    return read_bench(Path(folder))


def compare_runs(
    baseline: str | os.PathLike[str] | LoadedRun, run: str | os.PathLike[str] | LoadedRun
) -> RunComparison:
    """Compare a run with a baseline.

    Args:
        baseline: a run folder, a baseline's folder, or a `Result`.
        run: a run folder, a baseline's folder, or a `Result`.

    Raises:
        RunFolderError: a folder has no run, or a damaged one.
    """
    return RunComparison(**vars(comparison.compare_runs(baseline, run)))


def _require_axes(given: Iterable[str], known: tuple[str, ...]) -> None:
    for key in given:
        if key in SweepConfig.model_fields and key not in known:
            raise UsageError(f"verify takes no {key}: give a plan with it to cgverify.sweep.")
        if key not in known:
            raise UnknownNameError("axis", key, known)


def _require_count(name: str, given: object) -> None:
    if given is None or (isinstance(given, int) and not isinstance(given, bool) and given >= 1):
        return
    raise UsageError(f"{name} is {given!r}: give a whole number from 1 on.")
