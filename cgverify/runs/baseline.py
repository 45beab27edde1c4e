"""Baselines: runs kept to compare with, small enough to be published beside the code and reviewed like it.

| file | |
|---|---|
| `run.json` | what the run was, as in a run folder |
| `findings.jsonl.gz` | its `findings.jsonl`, in report order, without what a comparison has no use for |
| `summary.csv` | a row per component, setting and case: what a reviewer reads |

Verdicts can be compared between machines. Times and the exact r belong to the machine that `run.json` names.
"""

from __future__ import annotations

import gzip
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cgverify.common.errors import RunFolderError
from cgverify.common.records import TIMES, CellResult, Run, Verdict
from cgverify.runs.folder import read_plan, read_run, replace_all
from cgverify.runs.order import in_report_order

PACKED = "findings.jsonl.gz"


@dataclass(frozen=True)
class StoredRun:
    """A run as it was kept, with its finished cells in report order."""

    run: Run
    results: Sequence[CellResult]


def load_stored_run(path: Path) -> StoredRun:
    """A run folder or a baseline.

    Raises:
        RunFolderError: neither is there, or it is damaged.
    """
    if not (path / PACKED).exists():
        run, results = read_run(path)
        places = {planned.cell.id: planned.place for planned in read_plan(path)}
        if not places:
            return StoredRun(run, in_report_order(run, results))
        # A cell that is not in the plan stood for a checkpoint which has been found since.
        planned = [result for result in results if result.cell.id in places]
        return StoredRun(run, sorted(planned, key=lambda result: places[result.cell.id]))
    with tempfile.TemporaryDirectory() as unpacked:  # one reader for both: an old baseline reads like an old run
        folder = Path(unpacked)
        try:
            shutil.copy(path / "run.json", folder)
            (folder / "findings.jsonl").write_bytes(gzip.decompress((path / PACKED).read_bytes()))
            return StoredRun(*read_run(folder))
        except (OSError, EOFError, zlib.error) as error:
            raise RunFolderError(f"Cannot read the baseline in {path}: {error}. Accept it anew.") from error
        except RunFolderError as error:
            raise RunFolderError(str(error).replace(unpacked, str(path))) from None


def accept(stored: StoredRun, path: Path, summary: str) -> None:
    """Keep a run as the baseline in `path`, in place of one that is there, which is kept where there is no room.

    Args:
        summary: the text of its `summary.csv`, which the report makes.

    Raises:
        RunFolderError: the run is not fit to be compared with, or `path` is something else than a baseline.
    """
    _require_fit(stored.results)
    if path.exists() and not (path / PACKED).exists():
        raise RunFolderError(f"{path} exists and is no baseline: give another name.")
    lines = "".join(_lean(result).model_dump_json() + "\n" for result in stored.results)
    files = {
        PACKED: gzip.compress(lines.encode(), mtime=0),  # no time of packing in it: the same run is the same bytes
        "run.json": (stored.run.model_dump_json(indent=2) + "\n").encode(),
        "summary.csv": summary.encode(),
    }
    new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        replace_all(path, files)
    except OSError as error:
        if new:  # what is half made would not be taken for a baseline another time
            shutil.rmtree(path, ignore_errors=True)
        raise RunFolderError(f"Cannot write to {path}: {error.strerror}. Give another --reports.") from error


def require_finished(path: Path) -> None:
    """Raise RunFolderError if a run folder's plan holds cells that the run did not come to."""
    left = {planned.cell.id for planned in read_plan(path)} - {
        result.cell.id for result in load_stored_run(path).results
    }
    if left:
        raise RunFolderError(f"{len(left)} cells of {path} are still to be run: finish it with --resume.")


def _require_fit(results: Sequence[CellResult]) -> None:
    """What could not be run would never be missed in a later run."""
    errors = [result for result in results if result.verdict is Verdict.ERROR]
    if errors:
        raise RunFolderError(
            f"{len(errors)} cells of that run could not be run, the first is {errors[0].cell.component}: finish it "
            "with --resume before it becomes a baseline."
        )
    if not any(finding.verdict.compares for result in results for finding in result.findings):
        raise RunFolderError("That run compared nothing: it cannot be a baseline.")


def _lean(result: CellResult) -> CellResult:
    """Without the names of tensors that are not kept with it and figures by head, and times no finer than they are."""
    dropped = {"tensors": "", "bits_by_head": (), "errors_by_head": ()}
    findings = tuple(finding.model_copy(update=dropped) for finding in result.findings)
    times = {name: round(getattr(result, name), 3) for name in TIMES}
    return result.model_copy(update={"findings": findings, **times})
