"""What Python code calls to verify."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pandas as pd

from cgverify.common.errors import UnknownNameError, UsageError
from cgverify.common.numerics import pin_numerics
from cgverify.common.records import IN_MEMORY, CellResult, Run, Verdict
from cgverify.plan.cells import plan
from cgverify.plan.yaml_plan import SweepConfig, load_plan, parse_plan
from cgverify.report.frames import findings_frame, in_plan_order, summary_frame, write_csv
from cgverify.report.outcome import counts, exit_code, failures
from cgverify.runs.baseline import load_stored_run
from cgverify.runs.folder import new_folder
from cgverify.runs.reading import read_plan
from cgverify.runs.request import ExecutionOptions, one_checkpoint, sweep_of

if TYPE_CHECKING:  # a stored run is read without torch
    from torch import nn

    from cgverify.verification.loaded_pair import LoadedPair

AXES = ("layers", "components", "cases", "seeds", "batch_size", "seq_len")
"""What of a plan `verify` takes for a pair."""
SETTINGS = ("candidates", "dtypes", "devices", "rotary_dims")
"""And what for a name only: a pair has its own."""


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
        config: the path of a plan in YAML, or what such a file would say.
        output: a new folder for the run; `reports/PLAN-TIME` by default.
        threads: of torch in each process, which are set for this process too; None leaves them.
        jobs: processes that share the work. With more than one, call this under `if __name__ == "__main__":`.
        scheduler: of a Dask cluster whose workers do the work, `tcp://host:8786`.
        keep_tensors: of which findings tensors are kept: `failed`, `all`, `none`.
        resume: continue the run that is in `output`.

    Raises:
        ConfigError: a plan that cannot be.
        UsageError: an argument that cannot be.
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
        described, name = load_plan(Path(config)), Path(config).stem
    else:
        described, name = parse_plan(_plain(config)), "sweep"
    options = ExecutionOptions(threads=threads, jobs=jobs, scheduler=scheduler, keep_tensors=keep_tensors)
    prepared = prepare(sweep_of(described, name), options)
    prepared.require_cells()
    path = Path(output) if output is not None else new_folder(prepared.run.model)
    session = RunSession.resume(prepared, path) if resume else RunSession.start(prepared, path)
    try:
        for _ in session.carry_out():
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


def verify(
    what: str | os.PathLike[str] | nn.Module,
    reference: nn.Module | None = None,
    /,
    *,
    weights: str = "auto",
    threads: int | None = None,
    **axes: Any,
) -> Result:
    """Verify a checkpoint by its name, or a bridge in memory beside the model that it must agree with; nothing is kept.

    Args:
        what: a name of `cgverify models`, a folder or a hub id; or a `TransformerBridge`.
        reference: for a bridge: a `CodeGenForCausalLM` with the same weights in memory of its own, on which no bridge
            was booted. Its dtype and device are the pair's. The bridge may be in compatibility mode: then its processed
            weights are verified too (`cgverify.verification.compatibility`).
        weights: for a name: see `cgverify.checkpoint.resolve`.
        threads: of torch, which are set for this process; None leaves them.
        axes: keys of a plan (`cgverify.plan.yaml_plan`): `AXES`, and for a name `SETTINGS` too. Rules and limits are
            for `cgverify.sweep`.

    Raises:
        UsageError: a name, an axis or another argument that cannot be; a pair that is none.
        CgverifyError: a checkpoint that cannot be had.
    """
    from cgverify.runs.prepare import prepare
    from cgverify.runs.session import verify_batches
    from cgverify.verification.loaded_pair import LoadedPair

    _require_count("threads", threads)
    if isinstance(what, str | os.PathLike):
        if reference is not None:
            raise UsageError("A reference stands beside a bridge: beside a name, leave it out.")
        _require_axes(axes, (*AXES, *SETTINGS))
        config = parse_plan(_plain({"models": {"model": what, "weights": weights}, **axes}))
        (request,) = config.requests()
        prepared = prepare(
            one_checkpoint("verify", request.model, request.weights, request.axes), ExecutionOptions(threads=threads)
        )
        results = list(verify_batches(prepared, prepared.batches))
        return Result(prepared.run, tuple(in_plan_order(results, prepared.cells)), None, len(prepared.cells))
    if reference is None:
        raise UsageError("verify takes a model's name, or a bridge and its reference.")
    if weights != "auto":
        raise UsageError("weights is for a model's name: a pair has those that are in memory.")
    return _verify_pair(LoadedPair(what, reference), threads, axes)


def _verify_pair(pair: LoadedPair, threads: int | None, axes: dict[str, Any]) -> Result:
    from cgverify.checkpoint.lookup import FoundCheckpoints
    from cgverify.runs.prepare import describe_run

    for key in axes:
        if key in SETTINGS:
            raise UsageError(f"{key} is the pair's own: leave it out.")
    _require_axes(axes, AXES)
    own = {"models": IN_MEMORY, "candidates": "bridge", "dtypes": pair.dtype, "devices": pair.device}
    asked = parse_plan(_plain({**own, **axes}))
    checkpoint = pair.checkpoint
    cells = plan(asked.requests(), {(IN_MEMORY, "auto"): checkpoint})
    pair.require(cells)
    found = FoundCheckpoints({(IN_MEMORY, "auto"): checkpoint})
    run = describe_run("verify", IN_MEMORY, found, asked.model_dump(mode="json"), pin_numerics(threads))
    return Result(run, tuple(in_plan_order(pair.verify(cells), cells)), None, len(cells))


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


def _plain(value: Any) -> Any:
    """A plan as YAML would have it: paths as text, and whatever can be gone through as a list."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [_plain(one) for one in value]
    return value


TOLD = 5
"""How many failures `assert_ok` tells."""


@dataclass(frozen=True)
class Result:
    """A run and what it found."""

    run: Run
    results: tuple[CellResult, ...]
    """In the plan's order."""
    folder: Path | None
    """Where it is kept; None where it is not."""
    planned: int
    """How many cells were to be verified."""

    @cached_property
    def findings(self) -> pd.DataFrame:
        """One row per tap of every cell, the columns of `findings.csv`."""
        return findings_frame(self.results)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row per component and setting, the columns of `summary.csv`."""
        return summary_frame(self.results)

    @property
    def exit_code(self) -> int:
        """What the command line would have ended with."""
        code = exit_code(self.results)
        return code if code == 1 or len(self.results) == self.planned else 3

    @property
    def ok(self) -> bool:
        """Whether everything was verified, and everything held."""
        return self.exit_code == 0

    def assert_ok(self) -> None:
        """Raise AssertionError, with a sentence for each failure, unless everything was verified and held."""
        if not self.ok:
            raise AssertionError("\n".join(self._reasons()))

    def _reasons(self) -> list[str]:
        found = failures(self.results)
        told = [
            f"{failure.finding.verdict.value} {failure.cell.model} {failure.sentence}\n    {failure.command(self.run)}"
            for failure in found[:TOLD]
        ]
        if len(found) > TOLD:
            told.append(f"… and {len(found) - TOLD} more: see the findings.")
        if len(self.results) < self.planned:
            told.append(f"Only {len(self.results)} of {self.planned} cells were verified.")
        if not told:
            refused = counts(self.results)[Verdict.UNSUPPORTED]
            told.append(f"Nothing was compared: Hugging Face refuses {refused} cells.")
        return told


def load_run(folder: str | os.PathLike[str]) -> Result:
    """A run that was kept, of this cgverify or an older one; also one that was interrupted, or still goes on; or a
    baseline.

    Raises:
        RunFolderError: no run there, a damaged one, or one of a newer cgverify.
    """
    path = Path(folder)
    stored = load_stored_run(path)
    return Result(stored.run, tuple(stored.results), path, len(read_plan(path)) or len(stored.results))
