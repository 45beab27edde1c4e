"""Baselines: runs that are kept to compare with, small enough to be published and reviewed with the code.

| file | |
|---|---|
| `run.json` | the description of the run, as in a run folder |
| `findings.jsonl.gz` | its `findings.jsonl`, in report order, without what a comparison does not need |
| `summary.csv` | a row per component, setting and case, for reviewers |

Verdicts can be compared between machines. Times and the exact r belong to the machine that `run.json` names.
"""

from __future__ import annotations

import gzip
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cgverify.common.errors import RunFolderError
from cgverify.common.records import TIMES, CellResult, Run, Verdict
from cgverify.runs.atomic import replace_files
from cgverify.runs.reading import read_plan, read_run

PACKED = "findings.jsonl.gz"


@dataclass(frozen=True)
class StoredRun:
    """A run folder or baseline in memory, with its finished cells in report order."""

    run: Run
    results: Sequence[CellResult]
    folder: Path | None = field(default=None, compare=False)
    """The run folder, in which tensors may be kept. None for a baseline."""


def load_stored_run(path: Path) -> StoredRun:
    """Read a run folder or a baseline.

    Raises:
        RunFolderError: the folder has neither, or is damaged.
    """
    if not (path / PACKED).exists():
        run, results = read_run(path)
        places = {planned.cell.id: planned.place for planned in read_plan(path)}
        # A cell that is not planned is the error cell of a checkpoint that was available when the run was continued.
        planned = [result for result in results if result.cell.id in places]
        return StoredRun(run, sorted(planned, key=lambda result: places[result.cell.id]), path)
    with tempfile.TemporaryDirectory() as unpacked:
        folder = Path(unpacked)
        try:
            shutil.copy(path / "run.json", folder)
            (folder / "findings.jsonl").write_bytes(gzip.decompress((path / PACKED).read_bytes()))
            return StoredRun(*read_run(folder))
        except (OSError, EOFError, zlib.error) as error:
            raise RunFolderError(f"Cannot read the baseline in {path}: {error}. Accept it again.") from error
        except RunFolderError as error:
            raise RunFolderError(str(error).replace(unpacked, str(path))) from None


def accept(stored: StoredRun, path: Path, summary: str) -> None:
    """Write a run as the baseline in `path`. A baseline that is there is replaced, or kept if the disk has no room.

    Args:
        summary: the text of its `summary.csv`, which the report makes.

    Raises:
        RunFolderError: the run has errors or compared nothing, or `path` is not a baseline.
    """
    _require_comparable(stored.results)
    if path.exists() and not (path / PACKED).exists():
        raise RunFolderError(f"{path} exists and is not a baseline: give another name.")
    lines = "".join(_reduced(result).model_dump_json() + "\n" for result in stored.results)
    files = {
        PACKED: gzip.compress(lines.encode(), mtime=0),  # without the time, so that equal runs are equal bytes
        "run.json": (stored.run.model_dump_json(indent=2) + "\n").encode(),
        "summary.csv": summary.encode(),
    }
    new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        replace_files(path, files)
    except OSError as error:
        if new:  # an incomplete folder would be refused at the next attempt
            shutil.rmtree(path, ignore_errors=True)
        raise RunFolderError(f"Cannot write to {path}: {error.strerror}. Give another --reports.") from error


def require_finished(path: Path) -> None:
    """Raise RunFolderError if a run folder's plan has cells without a result."""
    finished = {result.cell.id for result in load_stored_run(path).results}
    remaining = {planned.cell.id for planned in read_plan(path)} - finished
    if remaining:
        raise RunFolderError(f"{len(remaining)} cells of {path} are still to be run: finish it with --resume.")


def _require_comparable(results: Sequence[CellResult]) -> None:
    """Raise RunFolderError if later runs could not fall short of these results."""
    errors = [result for result in results if result.verdict is Verdict.ERROR]
    if errors:
        raise RunFolderError(
            f"{len(errors)} cells of that run could not be run, the first is {errors[0].cell.component}: finish it "
            "with --resume before it becomes a baseline."
        )
    if not any(finding.verdict.compares for result in results for finding in result.findings):
        raise RunFolderError("That run compared nothing: it cannot be a baseline.")


def _reduced(result: CellResult) -> CellResult:
    """Drop the paths of kept tensors and the values per head, and round times to milliseconds."""
    dropped = {"tensors": "", "bits_by_head": (), "errors_by_head": ()}
    findings = tuple(finding.model_copy(update=dropped) for finding in result.findings)
    times = {name: round(getattr(result, name), 3) for name in TIMES}
    return result.model_copy(update={"findings": findings, **times})
