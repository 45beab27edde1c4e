"""Run folders: written as the run goes, read and continued afterwards.

| file | |
|---|---|
| `plan.jsonl` | the cells that are to be run, a line each, with their places in the whole plan |
| `run.json` | what the run was, written before its first cell |
| `findings.jsonl` | the truth: a line per finished cell, written at once, in the order of completion |
| `findings.csv`, `summary.csv` | made from it at the end, in the plan's order: the same bytes for the same run |
| `tensors/` | a safetensors file per kept finding (`cgverify.verification.saved_tensors`) |
| `timings.csv` | seconds per cell |

The CSV files are the report's work (`cgverify.report.frames`).

A run may be killed at any moment. A file that is replaced is written beside its place and renamed, so that it is whole
or not there; of `findings.jsonl` only lines that end count, and what a crash tore is cut off when the run is continued.
One process at a time writes to a folder: it holds a lock on the folder itself, which the system drops with the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cgverify.common.errors import RunFolderError, StorageError
from cgverify.common.records import SCHEMA_VERSION, TIMES, Cell, CellResult, Checkpoint, Finding, Record, Run, Verdict

SAME = ("versions", "numerics", "machine")
"""What must not differ between the parts of a continued run."""

SOURCES = "candidate_sources"
"""The setting that holds a digest of each candidate's file."""

PARTIAL = ".partial"
"""Ends the name of a file that is not yet whole."""

BEFORE_RUN = {"plan.jsonl", f"plan.jsonl{PARTIAL}", f"run.json{PARTIAL}"}
"""What a start that was killed may leave before there is a run."""


TWICE = "twice"
"""The stage of the finding that a cell ran twice and came out differently."""


class Planned(Record):
    """A line of plan.jsonl: a cell, and its place in the whole plan, of which a shard has a part."""

    place: int
    cell: Cell


def require_new(path: Path) -> None:
    """Raise RunFolderError if a folder holds something that a new run would have to stand beside."""
    if begun(path):
        raise RunFolderError(
            f"{path} exists and is not empty: give another --output, or --resume to continue that run."
        )


class RunFolder:
    """A folder that holds one run, open for appending, and locked."""

    def __init__(self, path: Path, run: Run, lock: int) -> None:
        self.path = path
        self.run = run
        self._lock = lock
        self._findings = (path / "findings.jsonl").open("ab", buffering=0)

    @classmethod
    def create(cls, path: Path, run: Run, plan: Sequence[Planned] = ()) -> RunFolder:
        """A new run.

        Raises:
            RunFolderError: the folder holds something already, is in use, or cannot be written.
        """
        with _told(path), _locked(path) as lock:
            require_new(path)
            _describe(path, run, plan)
            return cls(path, run, lock)

    @classmethod
    def resume(cls, path: Path, run: Run, plan: Sequence[Planned] = ()) -> tuple[RunFolder, list[CellResult]]:
        """Continue a run, with the cells that are finished already.

        Raises:
            RunFolderError: no run there, one in use, or one made elsewhere or otherwise than `run` would be.
        """
        if not path.is_dir():
            raise _no_run(path)
        with _told(path), _locked(path) as lock:
            before, finished = read_run(path)
            _require_same(path, before, run)
            found = {"checkpoints": run.checkpoints} if run.checkpoints else {}
            continued = before.model_copy(update={**found, "plan": run.plan, "schema_version": SCHEMA_VERSION})
            _cut_torn_line(path / "findings.jsonl")
            if continued != before or not (path / "plan.jsonl").exists():
                _describe(path, continued, plan)
            return cls(path, continued, lock), finished

    def append(self, result: CellResult) -> None:
        """Keep a finished cell, whatever happens next.

        Raises:
            StorageError: it cannot be written; what was finished before is kept.
        """
        line = result.model_dump_json().encode() + b"\n"
        size = self._findings.tell()
        try:
            written = self._findings.write(line)
            if written != len(line):  # the rest says why: the disk is full, or the file has reached its limit
                self._findings.write(line[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                self._findings.truncate(size)
            raise full(self.path, error) from error

    def forget(self, cells: Iterable[Cell]) -> None:
        """Drop what was found of some cells, so that they are run again."""
        dropped = {cell.id for cell in cells}
        path = self.path / "findings.jsonl"
        kept = [line for line in _whole_lines(path) if _cell_id(line) not in dropped]
        with _told(self.path):
            replace(path, b"".join(kept))
        self._findings.close()
        self._findings = path.open("ab", buffering=0)

    def close(self) -> None:
        self._findings.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def new_folder(model: str) -> Path:
    """`reports/MODEL-TIME`, with a number behind it where two runs start in one second."""
    stem = f"{model.replace('/', '--')}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    path, number = Path("reports") / stem, 2
    while path.exists():
        path, number = Path("reports") / f"{stem}-{number}", number + 1
    return path


def begun(path: Path) -> bool:
    """Whether a folder holds something, and not only what a start left that was killed at once."""
    return path.is_dir() and bool({entry.name for entry in path.iterdir()} - BEFORE_RUN)


def read_run(path: Path) -> tuple[Run, list[CellResult]]:
    """A run and its finished cells, in the order of completion.

    A cell that ran twice counts once. Errors give way to what was found; two findings that differ become an error.

    Raises:
        RunFolderError: no run there, a damaged one, or one of a newer cgverify.
    """
    run = _read_run(path)
    results: dict[str, CellResult] = {}
    for number, line in enumerate(_whole_lines(path / "findings.jsonl"), start=1):
        try:
            result = CellResult.model_validate_json(line)
        except ValidationError as error:
            raise RunFolderError(
                f"Line {number} of {path / 'findings.jsonl'} is damaged ({error.errors()[0]['msg']}): delete the line, "
                "and --resume runs its cell again."
            ) from None
        before = results.get(result.cell.id)
        results[result.cell.id] = result if before is None else either(before, result)
    return run, list(results.values())


def read_plan(path: Path) -> list[Planned]:
    """The cells that a run was to run, in plan order; empty where a run of an older cgverify kept no plan.

    Raises:
        RunFolderError: a damaged plan.
    """
    try:
        return [Planned.model_validate_json(line) for line in _whole_lines(path / "plan.jsonl")]
    except ValidationError as error:
        raise RunFolderError(f"{path / 'plan.jsonl'} is damaged: {error.errors()[0]['msg']}.") from None


def either(first: CellResult, second: CellResult) -> CellResult:
    """What counts of a cell that ran twice."""
    if any(finding.stage == TWICE for finding in first.findings):
        return first
    if first.verdict is Verdict.ERROR or second.verdict is Verdict.ERROR:
        return first if second.verdict is Verdict.ERROR and first.verdict is not Verdict.ERROR else second
    if _found(first) == _found(second):
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
    finding = Finding(step="", tap="", stage=TWICE, verdict=Verdict.ERROR, message=message)
    return CellResult(cell=second.cell, findings=(finding,), seconds=second.seconds)


def replace(path: Path, content: bytes) -> None:
    """Write a file so that it is whole or as it was before."""
    replace_all(path.parent, {path.name: content})


def replace_all(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files of a folder so that, where there is no room for all of them, all are as they were before."""
    partials = {name: folder / f"{name}{PARTIAL}" for name in contents}
    try:
        for name, partial in partials.items():
            partial.write_bytes(contents[name])
        for name, partial in partials.items():
            partial.replace(folder / name)
    except OSError:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
        raise


def full(path: Path, error: OSError) -> StorageError:
    """What to say where a run cannot go on writing."""
    return StorageError(
        f"Cannot write to {path}: {error.strerror}. What was finished is kept: make room, and --resume goes on."
    )


def _describe(path: Path, run: Run, plan: Sequence[Planned]) -> None:
    """Write plan.jsonl and run.json; the latter last, for it makes the folder a run."""
    replace(path / "plan.jsonl", b"".join(planned.model_dump_json().encode() + b"\n" for planned in plan))
    replace(path / "run.json", (run.model_dump_json(indent=2) + "\n").encode())


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFolderError(f"Cannot write to {path}: {error.strerror}. Give another --output.") from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """A lock on a folder, which is made if need be; given up where what is inside fails."""
    path.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(
                f"Another process is writing to {path}: wait for it, or give another --output."
            ) from None
        except OSError:  # some network filesystems lock no folders: there, nothing keeps two processes apart
            pass
        yield lock
    except BaseException:
        os.close(lock)
        raise


def _read_run(path: Path) -> Run:
    try:
        described = json.loads((path / "run.json").read_bytes())
        version = described["schema_version"]
        if version > SCHEMA_VERSION:
            raise RunFolderError(
                f"{path} is of a newer cgverify (schema {version}; this one reads up to {SCHEMA_VERSION}): read it "
                "with that one."
            )
        return Run.model_validate(_migrated(described))
    except (FileNotFoundError, NotADirectoryError):
        raise _no_run(path) from None
    except (OSError, ValueError, KeyError, TypeError) as error:  # ValidationError is a ValueError
        reason = str(error).splitlines()[0]
        raise RunFolderError(f"{path / 'run.json'} is damaged or none of cgverify's: {reason}.") from error


def _migrated(described: dict[str, Any]) -> dict[str, Any]:
    """A run as an older cgverify wrote it, in today's form."""
    if described["schema_version"] > 1:
        return described
    checkpoint = Checkpoint(
        name=described["model"],
        asked=described["settings"].get("model", described["model"]),
        weights=described["settings"].get("weights", "auto"),
        origin=described["weights_origin"],
        digest=described["weights_digest"],
        n_layers=0,
        rotary_dim=0,
        n_positions=0,
        n_embd=0,
        vocab_size=0,
    )
    return {**described, "checkpoints": [checkpoint.model_dump()]}


def _require_same(path: Path, before: Run, now: Run) -> None:
    digests = _digests(before)
    for checkpoint, digest in _digests(now).items():
        if digest and digests.get(checkpoint, digest) not in ("", digest):
            raise RunFolderError(f"{path} is a run of other weights: give another --output.")
    for option, value in json.loads(now.model_dump_json())["settings"].items():
        if option != SOURCES and before.settings.get(option) != value:
            raise RunFolderError(
                f"{path} was made with {option} {before.settings.get(option)}, now {value}: continue a run with "
                "the same options and candidates, or give another --output."
            )
    if (told := first_difference(before.settings.get(SOURCES), now.settings.get(SOURCES))) is not None:
        raise RunFolderError(
            f"{path} was made with other sources of its candidates ({told}), and what held for those says nothing of "
            "these: begin a new run in another --output."
        )
    for part in SAME:
        if (told := first_difference(before.environment.get(part), now.environment.get(part))) is not None:
            raise RunFolderError(
                f"{path} was made with other {part} ({told}), so its findings "
                "cannot stand beside new ones: run as then, or give another --output."
            )


def _digests(run: Run) -> dict[tuple[str, str], str]:
    """Of the weights, by what was asked for."""
    if not run.checkpoints:
        return {(run.model, ""): run.weights_digest}
    return {(checkpoint.asked, checkpoint.weights): checkpoint.digest for checkpoint in run.checkpoints}


def first_difference(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> str | None:
    """The first key that two descriptions differ in, with both values; None where they are the same."""
    old, new = (json.loads(json.dumps(one)) or {} for one in (before, now))
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            return f"{key} {old.get(key)}, now {new.get(key)}"
    return None


def _found(result: CellResult) -> str:
    """All of a result that must be the same each time. As JSON, for NaN is not equal to itself."""
    return result.model_dump_json(exclude=set(TIMES))


def _whole_lines(path: Path) -> list[bytes]:
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:  # killed before the first cell
        return []
    return [line + b"\n" for line in lines[:-1]]


def _cell_id(line: bytes) -> str:
    return CellResult.model_validate_json(line).cell.id


def _cut_torn_line(path: Path) -> None:
    """Drop what stands behind the last newline: a line that a crash left unfinished."""
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def _no_run(path: Path) -> RunFolderError:
    return RunFolderError(f"{path} holds no run (no run.json): give a folder that cgverify wrote.")
