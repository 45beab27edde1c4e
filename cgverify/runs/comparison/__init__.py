"""Two runs, or two slices of one: what differs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cgverify.common.records import CellResult, Run
from cgverify.runs.baseline import StoredRun, load_stored_run
from cgverify.runs.comparison.changes import Comparison, compare


class Read(Protocol):
    """A run that is read already: a `StoredRun`, or a `cgverify.Result`."""

    @property
    def run(self) -> Run: ...

    @property
    def results(self) -> Sequence[CellResult]: ...


def compare_runs(baseline: str | os.PathLike[str] | Read, run: str | os.PathLike[str] | Read) -> Comparison:
    """What differs between a baseline and a run.

    Args:
        baseline: a folder that `cgverify baseline accept` or any run has written, or a `cgverify.Result`.
        run: likewise.

    Raises:
        RunFolderError: a folder that holds no run, or a damaged one.
    """
    return compare(_stored(baseline), _stored(run))


def _stored(given: str | os.PathLike[str] | Read) -> StoredRun:
    return load_stored_run(Path(given)) if isinstance(given, str | os.PathLike) else StoredRun(given.run, given.results)
