"""Compare two runs, or two slices of one run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cgverify.common.records import CellResult, Run
from cgverify.runs.baseline import StoredRun, load_stored_run
from cgverify.runs.comparison.changes import Comparison, compare


class LoadedRun(Protocol):
    """A run in memory: a `StoredRun` or a `cgverify.Result`."""

    @property
    def run(self) -> Run: ...

    @property
    def results(self) -> Sequence[CellResult]: ...


def compare_runs(baseline: str | os.PathLike[str] | LoadedRun, run: str | os.PathLike[str] | LoadedRun) -> Comparison:
    """Compare a run with a baseline.

    Args:
        baseline: a run folder, a baseline's folder, or a `cgverify.Result`.
        run: a run folder, a baseline's folder, or a `cgverify.Result`.

    Raises:
        RunFolderError: a folder has no run, or a damaged one.
    """
    before, after = (
        load_stored_run(Path(given)) if isinstance(given, str | os.PathLike) else StoredRun(given.run, given.results)
        for given in (baseline, run)
    )
    return compare(before, after)
