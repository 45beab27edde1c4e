"""Run folders: written as the run goes, read and continued afterwards.

| file | |
|---|---|
| `run.json` | what the run was, written before its first cell |
| `findings.jsonl` | the truth: a line per finished cell, flushed, in the order of completion |
| `findings.csv`, `summary.csv` | made from it at the end, in the plan's order: the same bytes for the same run |
| `tensors/` | a safetensors file per kept finding (`cgverify.evidence`) |
| `timings.csv` | seconds per cell |

The CSV files are the report's work (`cgverify.report.frames`).
Only whole lines count: a line torn by a crash is cut off when the run is continued.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import ValidationError

from cgverify.errors import RunFolderError
from cgverify.records import CellResult, Run

SAME = ("versions", "numerics", "machine")
"""What must not differ between the parts of a continued run."""


class RunFolder:
    """A folder that holds one run, open for appending."""

    def __init__(self, path: Path, run: Run) -> None:
        self.path = path
        self.run = run
        self._findings = (path / "findings.jsonl").open("a", encoding="utf-8")

    @classmethod
    def create(cls, path: Path, run: Run) -> RunFolder:
        """A new run.

        Raises:
            RunFolderError: the folder holds something already, or cannot be written.
        """
        try:
            if path.exists() and any(path.iterdir()):
                raise RunFolderError(
                    f"{path} exists and is not empty: give another --output, or --resume to continue that run."
                )
            path.mkdir(parents=True, exist_ok=True)
            (path / "run.json").write_text(run.model_dump_json(indent=2) + "\n", encoding="utf-8")
            return cls(path, run)
        except OSError as error:
            raise RunFolderError(f"Cannot write to {path}: {error.strerror}. Give another --output.") from error

    @classmethod
    def resume(cls, path: Path, run: Run) -> tuple[RunFolder, list[CellResult]]:
        """Continue a run, with the cells that are finished already.

        Raises:
            RunFolderError: no run there, or one made elsewhere or otherwise than `run` would be.
        """
        before, finished = read(path)
        if before.weights_digest != run.weights_digest:
            raise RunFolderError(f"{path} is a run of other weights: give another --output.")
        for option, value in json.loads(run.model_dump_json())["settings"].items():
            if before.settings.get(option) != value:
                raise RunFolderError(
                    f"{path} was made with {option} {before.settings.get(option)}, now {value}: continue a run with "
                    "the same options and candidates, or give another --output."
                )
        for part in SAME:
            if before.environment.get(part) != json.loads(json.dumps(run.environment.get(part))):
                raise RunFolderError(
                    f"{path} was made with other {part} ({_first_difference(before, run, part)}), so its findings "
                    "cannot stand beside new ones: run as then, or give another --output."
                )
        try:
            _cut_torn_line(path / "findings.jsonl")
            return cls(path, before), finished
        except OSError as error:
            raise RunFolderError(f"Cannot write to {path}: {error.strerror}.") from error

    def append(self, result: CellResult) -> None:
        """Keep a finished cell, whatever happens next."""
        self._findings.write(result.model_dump_json() + "\n")
        self._findings.flush()

    def close(self) -> None:
        self._findings.close()


def read(path: Path) -> tuple[Run, list[CellResult]]:
    """A run and its finished cells, in the order of completion.

    Raises:
        RunFolderError: no run there, or a damaged one.
    """
    try:
        run = Run.model_validate_json((path / "run.json").read_text(encoding="utf-8"))
        lines = (path / "findings.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        raise RunFolderError(f"{path} holds no run (no run.json): give a folder that cgverify wrote.") from None
    except (OSError, ValidationError) as error:
        raise RunFolderError(f"Cannot read the run in {path}: {error}") from error
    results: dict[str, CellResult] = {}
    for number, line in enumerate(lines, start=1):
        try:
            result = CellResult.model_validate_json(line)
        except ValidationError as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise RunFolderError(f"Line {number} of {path / 'findings.jsonl'} is damaged: {error}") from error
        results[result.cell.id] = result
    return run, list(results.values())


def _cut_torn_line(path: Path) -> None:
    """Drop what stands behind the last newline: a line that a crash left unfinished."""
    whole = path.read_bytes().rfind(b"\n") + 1
    os.truncate(path, whole)


def _first_difference(before: Run, now: Run, part: str) -> str:
    old, new = before.environment.get(part) or {}, now.environment.get(part) or {}
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            return f"{key} {old.get(key)}, now {new.get(key)}"
    return "unknown"
