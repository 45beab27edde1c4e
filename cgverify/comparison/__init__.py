"""Two runs, or two slices of one: what differs."""

from __future__ import annotations

from pathlib import Path

from cgverify.baseline import StoredRun, load
from cgverify.comparison.changes import Comparison, compare


def compare_runs(baseline: str | Path | StoredRun, run: str | Path | StoredRun) -> Comparison:
    """What differs between a baseline and a run.

    Args:
        baseline: a folder that `cgverify baseline accept` or any run has written, or one read already.
        run: likewise.

    Raises:
        RunFolderError: a folder that holds no run, or a damaged one.
    """
    return compare(_stored(baseline), _stored(run))


def _stored(given: str | Path | StoredRun) -> StoredRun:
    return given if isinstance(given, StoredRun) else load(Path(given))
