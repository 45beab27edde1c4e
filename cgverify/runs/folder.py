"""A run folder that is open for writing.

| file | |
|---|---|
| `plan.jsonl` | the cells to verify, a line each, with their places in the whole plan |
| `run.json` | the description of the run, written before its first cell |
| `findings.jsonl` | the results: a line per finished cell, written at once, in the order of completion |
| `findings.csv`, `summary.csv` | made from `findings.jsonl` at the end, in plan order: equal bytes for equal runs |
| `tensors/` | a safetensors file per kept finding (`cgverify.verification.saved_tensors`) |
| `timings.csv` | seconds per cell |

`cgverify.report.frames` writes the CSV files.

A run may be killed at any moment. A file that is replaced is written under another name and renamed, so that it is
complete or absent. Only complete lines of `findings.jsonl` count, and a line that a crash left incomplete is cut off
when the run is continued. One process at a time writes to a folder: it locks the file `.lock` in it, and the system
releases that lock when the process ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from cgverify.common.errors import RunFolderError, StorageError
from cgverify.common.records import Cell, CellResult, Run
from cgverify.runs.atomic import replace_file
from cgverify.runs.differences import differences, weights_digests
from cgverify.runs.reading import LOCK, PlannedCell, complete_lines, no_run, read_run, require_new

CANNOT_LOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What some network filesystems answer. There, nothing keeps two processes from writing to one folder."""


class RunFolder:
    """A folder with one run, open for appending, and locked."""

    def __init__(self, path: Path, run: Run, lock: FileLock) -> None:
        self.path = path
        self.run = run
        self._lock = lock
        self._findings = (path / "findings.jsonl").open("ab", buffering=0)

    @classmethod
    def create(cls, path: Path, run: Run, plan: Sequence[PlannedCell] = ()) -> RunFolder:
        """Start a new run.

        Raises:
            RunFolderError: the folder has content, is in use, or cannot be written.
        """
        with _reported_write_errors(path), _locked(path) as lock:
            require_new(path)
            _write_description(path, run, plan)
            return cls(path, run, lock)

    @classmethod
    def resume(cls, path: Path, run: Run, plan: Sequence[PlannedCell] = ()) -> tuple[RunFolder, list[CellResult]]:
        """Continue a run, and return it with its finished cells.

        Raises:
            RunFolderError: the folder has no run, is in use, or its run was made with other settings, weights,
                candidates, versions, numerics or on another machine than `run`.
        """
        if not path.is_dir():
            raise no_run(path)
        with _reported_write_errors(path), _locked(path) as lock:
            before, finished = read_run(path)
            _require_same(path, before, run)
            # A checkpoint that was unavailable before may be available now.
            found = {"checkpoints": run.checkpoints} if run.checkpoints else {}
            continued = before.model_copy(update={**found, "plan": run.plan})
            findings = path / "findings.jsonl"
            if findings.exists():
                os.truncate(findings, findings.read_bytes().rfind(b"\n") + 1)
            if continued != before or not (path / "plan.jsonl").exists():
                _write_description(path, continued, plan)
            return cls(path, continued, lock), finished

    def append(self, result: CellResult) -> None:
        """Write a finished cell to the disk.

        Raises:
            StorageError: it cannot be written. The results before it are kept.
        """
        line = result.model_dump_json().encode() + b"\n"
        size = self._findings.tell()
        try:
            written = self._findings.write(line)
            if written != len(line):  # the second write raises the reason: a full disk, or a limit on the file's size
                self._findings.write(line[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                self._findings.truncate(size)
            raise storage_error(self.path, error) from error

    def describe(self, run: Run) -> None:
        """Write another description of the run.

        Raises:
            RunFolderError: it cannot be written.
        """
        self.run = run
        with _reported_write_errors(self.path):
            replace_file(self.path / "run.json", (run.model_dump_json(indent=2) + "\n").encode())

    def drop(self, cells: Iterable[Cell]) -> None:
        """Remove the results of some cells, so that they are run again."""
        dropped = {cell.id for cell in cells}
        path = self.path / "findings.jsonl"
        kept = [line for line in complete_lines(path) if CellResult.model_validate_json(line).cell.id not in dropped]
        self._findings.close()  # Windows replaces no file that is open
        with _reported_write_errors(self.path):
            replace_file(path, b"".join(kept))
        self._findings = path.open("ab", buffering=0)

    def close(self) -> None:
        self._findings.close()
        self._lock.release()


def new_folder(model: str) -> Path:
    """Return `reports/MODEL-TIME`, with a number at the end if another run started in the same second."""
    stem = f"{model.replace('/', '--')}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    path, number = Path("reports") / stem, 2
    while path.exists():
        path, number = Path("reports") / f"{stem}-{number}", number + 1
    return path


def storage_error(path: Path, error: OSError) -> StorageError:
    """Return the error for a run that cannot write its results any longer."""
    return StorageError(
        f"Cannot write to {path}: {error.strerror}. What was finished is kept: make room, and --resume goes on."
    )


def _write_description(path: Path, run: Run, plan: Sequence[PlannedCell]) -> None:
    """Write plan.jsonl and then run.json, since a folder with run.json counts as a run."""
    replace_file(path / "plan.jsonl", b"".join(planned.model_dump_json().encode() + b"\n" for planned in plan))
    replace_file(path / "run.json", (run.model_dump_json(indent=2) + "\n").encode())


@contextlib.contextmanager
def _reported_write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFolderError(f"Cannot write to {path}: {error.strerror}. Give another --output.") from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[FileLock]:
    """Lock a folder, which is made if necessary. The lock is released here only if the body fails."""
    path.mkdir(parents=True, exist_ok=True)
    # A soft lock would outlive a process that is killed.
    lock = FileLock(path / LOCK, timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise RunFolderError(f"Another process is writing to {path}: wait for it, or give another --output.") from None
    except OSError as error:
        if error.errno not in CANNOT_LOCK:
            raise
    try:
        yield lock
    except BaseException:
        lock.release()
        raise


def _require_same(path: Path, before: Run, now: Run) -> None:
    """Raise RunFolderError if a run was made with other weights, settings, candidates, or in another environment."""
    digests = weights_digests(before)
    for checkpoint, digest in weights_digests(now).items():
        if digest and digests.get(checkpoint, digest) not in ("", digest):
            raise RunFolderError(f"{path} is a run of other weights: give another --output.")
    for difference in differences(before, now):
        if difference.part == "settings":
            raise RunFolderError(
                f"{path} was made with {difference}: continue a run with the same options and candidates, or give "
                "another --output."
            )
        if difference.part == "source":
            raise RunFolderError(
                f"The source of a candidate has changed since {path} was made ({difference}), so its findings may not "
                "be true of the new source: begin a new run in another --output."
            )
        if difference.part != "weights":  # a checkpoint that was unavailable before may be available now
            raise RunFolderError(
                f"{path} was made with other {difference.part} ({difference}), so its findings cannot be mixed with "
                "new ones: run with the old ones, or give another --output."
            )
