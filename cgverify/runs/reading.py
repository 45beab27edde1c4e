"""Read run folders, also of a run that was killed or is still being carried out. See `cgverify.runs.folder`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from cgverify.common.errors import RunFolderError
from cgverify.common.records import SCHEMA_VERSION, TIMES, Cell, CellResult, Finding, Record, Run, Verdict
from cgverify.runs.atomic import PARTIAL

LOCK = ".lock"
"""The file that the process which writes to a run folder has locked."""

STARTUP_FILES = {LOCK, "plan.jsonl", f"plan.jsonl{PARTIAL}", f"run.json{PARTIAL}"}
"""Files left by a run that was killed while starting. A folder with nothing else in it counts as empty."""

RAN_TWICE = "twice"
"""The stage of the finding of a cell that ran twice with different results."""


POLL_SECONDS = 0.5
"""The time between two looks at a run that is followed."""


class PlannedCell(Record):
    """A line of plan.jsonl: a cell, and its place in the whole plan, of which a shard has only a part."""

    place: int
    cell: Cell


def is_occupied(path: Path) -> bool:
    """Return whether a folder has content other than `STARTUP_FILES`."""
    return path.is_dir() and bool({entry.name for entry in path.iterdir()} - STARTUP_FILES)


def require_new(path: Path) -> None:
    """Raise RunFolderError if a folder has content that a new run would be mixed with."""
    if is_occupied(path):
        raise RunFolderError(
            f"{path} exists and is not empty: give another --output, or --resume to continue that run."
        )


def read_run(path: Path) -> tuple[Run, list[CellResult]]:
    """Return a run and its finished cells, in the order of completion. A cell that ran twice is reconciled.

    Raises:
        RunFolderError: the folder has no run, a damaged one, or one of another schema.
    """
    run = _read_description(path)
    results: dict[str, CellResult] = {}
    for number, line in enumerate(complete_lines(path / "findings.jsonl"), start=1):
        result = _parse_result(line, number, path)
        before = results.get(result.cell.id)
        results[result.cell.id] = result if before is None else reconcile(before, result)
    return run, list(results.values())


def read_plan(path: Path) -> list[PlannedCell]:
    """Return the cells that a run was to verify, in plan order; empty if the folder has no plan.

    Raises:
        RunFolderError: the plan is damaged.
    """
    try:
        return [PlannedCell.model_validate_json(line) for line in complete_lines(path / "plan.jsonl")]
    except ValidationError as error:
        raise RunFolderError(f"{path / 'plan.jsonl'} is damaged: {error.errors()[0]['msg']}.") from None


def follow(path: Path) -> Iterator[CellResult]:
    """Yield each result of a run once it is written, until every planned cell has one, or the run has ended early.

    A run that was killed is waited for, since it may be continued.

    Raises:
        RunFolderError: a line is damaged.
    """
    remaining = {planned.cell.id for planned in read_plan(path)}
    findings, offset, number = path / "findings.jsonl", 0, 0
    while remaining:
        ended = _has_ended(path)  # before the lines are read: the last results may be written between the two
        if offset and findings.stat().st_size < offset:  # the run was continued without the cells that had failed
            offset = number = 0
        new = complete_lines(findings, offset)
        offset += sum(map(len, new))
        for line in new:
            number += 1
            result = _parse_result(line, number, path)
            if result.cell.id in remaining:
                remaining.remove(result.cell.id)
                yield result
        if ended:
            return
        if not new:
            time.sleep(POLL_SECONDS)


def _has_ended(path: Path) -> bool:
    """Return whether the tables, which are written at the end, are younger than the results."""
    try:
        return (path / "summary.csv").stat().st_mtime_ns >= (path / "findings.jsonl").stat().st_mtime_ns
    except FileNotFoundError:
        return False


def reconcile(first: CellResult, second: CellResult) -> CellResult:
    """Return the result that counts for a cell that ran twice.

    A result replaces an error, and the first of two equal results counts. Two different results become an error.
    """
    if any(finding.stage == RAN_TWICE for finding in first.findings):
        return first
    if first.verdict is Verdict.ERROR or second.verdict is Verdict.ERROR:
        return first if second.verdict is Verdict.ERROR and first.verdict is not Verdict.ERROR else second
    ours, theirs = (result.model_dump_json(exclude=set(TIMES)) for result in (first, second))
    if ours == theirs:  # compared as JSON, since NaN does not equal itself
        return first
    pairs = zip(first.findings, second.findings, strict=False)
    where, then, now = next(
        ((f"{a.step} {a.tap}".strip(), a, b) for a, b in pairs if a.model_dump_json() != b.model_dump_json()),
        ("the number of findings", first.findings[0], second.findings[0]),
    )
    message = (
        f"it ran twice and the results differ at {where} ({then.verdict.value}, r {then.r}; then {now.verdict.value}, "
        f"r {now.r}): verify it alone, and do not trust this run"
    )
    finding = Finding(step="", tap="", stage=RAN_TWICE, verdict=Verdict.ERROR, message=message)
    return CellResult(cell=second.cell, findings=(finding,), seconds=second.seconds)


def complete_lines(path: Path, offset: int = 0) -> list[bytes]:
    """Return the lines of a file from a byte on that end with a newline; none if there is no such file."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            lines = file.read().split(b"\n")
    except FileNotFoundError:  # the run was killed before its first cell
        return []
    return [line + b"\n" for line in lines[:-1]]


def no_run(path: Path) -> RunFolderError:
    """Return the error for a folder without a run."""
    return RunFolderError(f"{path} holds no run (no run.json): give a folder that cgverify wrote.")


def _parse_result(line: bytes, number: int, path: Path) -> CellResult:
    try:
        return CellResult.model_validate_json(line)
    except ValidationError as error:
        raise RunFolderError(
            f"Line {number} of {path / 'findings.jsonl'} is damaged ({error.errors()[0]['msg']}): delete the line, "
            "and --resume runs its cell again."
        ) from None


def _read_description(path: Path) -> Run:
    try:
        description = json.loads((path / "run.json").read_bytes())
        version = description["schema_version"]
        if version != SCHEMA_VERSION:
            raise RunFolderError(
                f"{path} was written by another version of cgverify (schema {version}; this one reads "
                f"{SCHEMA_VERSION}): read it with that version."
            )
        return Run.model_validate(description)
    except (FileNotFoundError, NotADirectoryError):
        raise no_run(path) from None
    except (OSError, ValueError, KeyError, TypeError) as error:  # ValidationError is a ValueError
        reason = str(error).splitlines()[0]
        raise RunFolderError(f"{path / 'run.json'} is damaged or not written by cgverify: {reason}.") from error
