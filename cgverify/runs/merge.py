"""The shards of a sweep -> the run that they are of."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgverify.common.errors import RunFolderError, StorageError
from cgverify.common.records import CellResult, Finding, Run, Verdict, WholePlan
from cgverify.runs.folder import Planned, RunFolder, begun, either, first_difference, read_plan, read_run

SAME = ("versions", "numerics")
"""What must not differ between shards. Machines may: where their processors differ, the run says so."""


@dataclass(frozen=True)
class ShardRun:
    """A shard's run, as it was found."""

    path: Path
    run: Run
    plan: list[Planned]
    results: dict[str, CellResult]

    @property
    def shard(self) -> str:
        return str(self.run.settings.get("shard") or "1/1")


@contextlib.contextmanager
def whole_or_nothing(output: Path) -> Iterator[None]:
    """Write a new folder: where that fails, none is left, for a merge is not continued but made again.

    Raises:
        RunFolderError: the folder holds something.
        StorageError: there is no room.
    """
    if begun(output):
        raise RunFolderError(f"{output} exists and is not empty: give another --output.")
    try:
        yield
    except RunFolderError:  # before anything was written
        raise
    except BaseException as error:
        shutil.rmtree(output, ignore_errors=True)
        reason = error.__cause__ if isinstance(error, StorageError) else error
        if not isinstance(reason, OSError):
            raise
        raise StorageError(
            f"Cannot write to {output}: {reason.strerror}. The shards are as they were: make room, and merge again."
        ) from reason


def merge_runs(paths: Sequence[Path], output: Path) -> tuple[Run, list[CellResult]]:
    """Write the whole run, within `whole_or_nothing`, and return it with its results in plan order.

    Raises:
        RunFolderError: runs that do not fit together, or a shard that is missing or there twice.
        OSError, StorageError: it cannot be written.
    """
    parts = [_part(path) for path in paths]
    _require_all_shards(parts)
    for part in parts[1:]:
        _require_fit(parts[0], part)
    planned = {one.cell.id: one for part in parts for one in part.plan}
    in_order = sorted(planned.values(), key=lambda one: one.place)
    _require_whole(parts, in_order)
    run = _merged(parts)
    results = [_result(one, parts) for one in in_order]
    folder = RunFolder.create(output, run, in_order)
    try:
        for result in results:
            folder.append(result)
        for part in parts:
            for kept in (part.path / "tensors").glob("*"):
                (output / "tensors").mkdir(exist_ok=True)
                shutil.copy(kept, output / "tensors")
    finally:
        folder.close()
    return run, results


def _part(path: Path) -> ShardRun:
    run, results = read_run(path)
    plan = read_plan(path)
    if run.schema_version < 2:
        raise RunFolderError(f"{path} is of an older cgverify, whose runs are no shards: make it again.")
    return ShardRun(path, run, plan, {result.cell.id: result for result in results})


def _require_all_shards(parts: Sequence[ShardRun]) -> None:
    there: dict[str, ShardRun] = {}
    for part in parts:
        if part.shard in there:
            raise RunFolderError(f"{there[part.shard].path} and {part.path} are both shard {part.shard}: give it once.")
        there[part.shard] = part
    counts = {part.shard.partition("/")[2]: part for part in parts}
    if len(counts) > 1:
        (one, first), (other, second) = list(counts.items())[:2]
        raise RunFolderError(f"{first.path} is one of {one} shards and {second.path} one of {other}: give one sweep's.")
    count = int(next(iter(counts)))
    missing = [f"{index}/{count}" for index in range(1, count + 1) if f"{index}/{count}" not in there]
    if missing:
        raise RunFolderError(f"Shard {', '.join(missing)} is missing: give a run folder for every shard.")


def _require_whole(parts: Sequence[ShardRun], planned: Sequence[Planned]) -> None:
    """Raise RunFolderError where the cells of all shards are not the plan that each is a part of."""
    together = WholePlan.of([one.cell for one in planned])
    for part in parts:
        if part.run.plan not in (None, together):
            raise RunFolderError(
                f"{part.path} is a part of {part.run.plan}, and the shards together are {together}: only shards of one "
                "sweep go together."
            )


def _require_fit(first: ShardRun, other: ShardRun) -> None:
    """Raise RunFolderError where two shards are of different plans, versions, numerics or weights."""
    _require_same_found(first, other)
    ours, theirs = (_plain({**part.run.settings, "shard": None}) for part in (first, other))
    for what, before, now in (
        ("another plan", ours, theirs),
        *((f"other {part}", first.run.environment.get(part), other.run.environment.get(part)) for part in SAME),
        ("other weights", _digests(first.run), _digests(other.run)),
    ):
        if (told := first_difference(before, now)) is not None:
            raise RunFolderError(
                f"{first.path} and {other.path} are runs of {what} ({told}): only shards of one sweep go together."
            )


def _require_same_found(first: ShardRun, other: ShardRun) -> None:
    """Raise RunFolderError where one shard had a checkpoint that the other had not: they dealt out different cells."""
    theirs = _digests(other.run)
    for name, digest in _digests(first.run).items():
        if name in theirs and bool(digest) != bool(theirs[name]):
            had, lacked = (first, other) if digest else (other, first)
            raise RunFolderError(
                f"{lacked.path} had no {name}, which {had.path} had: bring it there, let `sweep --resume` go on in "
                f"{lacked.path}, and merge again."
            )


def _digests(run: Run) -> dict[str, str]:
    """Of the weights, by what was asked for; empty where they could not be had."""
    return {f"{one.asked} ({one.weights})": one.digest for one in run.checkpoints}


def _merged(parts: Sequence[ShardRun]) -> Run:
    first = min(parts, key=lambda part: int(part.shard.partition("/")[0])).run
    machines = [part.run.environment.get("machine") for part in parts]
    others = [machine for machine in machines if machine != first.environment.get("machine")]
    environment = {**first.environment, **({"other_machines": others} if others else {})}
    return first.model_copy(
        update={
            "created": min(part.run.created for part in parts),
            "settings": {**first.settings, "shard": None},
            "environment": environment,
        }
    )


def _result(planned: Planned, parts: Sequence[ShardRun]) -> CellResult:
    """What became of a cell; an error where its shard ended before it."""
    found = [part.results[planned.cell.id] for part in parts if planned.cell.id in part.results]
    if found:
        result = found[0]
        for other in found[1:]:
            result = either(result, other)
        return result
    shard = next(part for part in parts if any(one.cell.id == planned.cell.id for one in part.plan))
    message = f"shard {shard.shard} ended before it: `cgverify sweep --resume` goes on in {shard.path}"
    finding = Finding(step="", tap="", stage="", verdict=Verdict.ERROR, message=message)
    return CellResult(cell=planned.cell, findings=(finding,), seconds=0.0)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain
