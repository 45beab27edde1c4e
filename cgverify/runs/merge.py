"""Merge the shards of a sweep into one run."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

from cgverify.common.errors import RunFolderError, StorageError
from cgverify.common.records import CellResult, Run, WholePlan
from cgverify.plan.batches import lost
from cgverify.runs.differences import differences, weights_digests
from cgverify.runs.folder import RunFolder
from cgverify.runs.reading import PlannedCell, is_occupied, read_plan, read_run, reconcile


@dataclass(frozen=True)
class ShardRun:
    """The run of one shard, as its folder has it."""

    path: Path
    run: Run
    plan: list[PlannedCell]
    results: dict[str, CellResult]

    @property
    def shard(self) -> str:
        return str(self.run.settings.get("shard") or "1/1")


@contextlib.contextmanager
def whole_or_nothing(output: Path) -> Iterator[None]:
    """Remove a new folder if writing it fails, since a merge is not continued but made again.

    Raises:
        RunFolderError: the folder has content.
        StorageError: the disk has no room.
    """
    if is_occupied(output):
        raise RunFolderError(f"{output} exists and is not empty: give another --output.")
    try:
        yield
    except RunFolderError:  # nothing was written
        raise
    except BaseException as error:
        shutil.rmtree(output, ignore_errors=True)
        reason = error.__cause__ if isinstance(error, StorageError) else error
        if not isinstance(reason, OSError):
            raise
        raise StorageError(
            f"Cannot write to {output}: {reason.strerror}. The shards are unchanged: make room, and merge again."
        ) from reason


def merge_runs(paths: Sequence[Path], output: Path) -> tuple[Run, list[CellResult]]:
    """Write the merged run, within `whole_or_nothing`, and return it with its results in plan order.

    Raises:
        RunFolderError: the runs are not the shards of one sweep, or a shard is missing or given twice.
        OSError, StorageError: the folder cannot be written.
    """
    shards = [_read_shard(path) for path in paths]
    _require_all_shards(shards)
    for shard in shards[1:]:
        _require_same_sweep(shards[0], shard)
    planned = {one.cell.id: one for shard in shards for one in shard.plan}
    plan = sorted(planned.values(), key=lambda one: one.place)
    _require_whole_plan(shards, plan)
    run = _merged_description(shards)
    results = [_result(one, shards) for one in plan]
    folder = RunFolder.create(output, run, plan)
    try:
        for result in results:
            folder.append(result)
        for shard in shards:
            for kept in (shard.path / "tensors").glob("*"):
                (output / "tensors").mkdir(exist_ok=True)
                shutil.copy(kept, output / "tensors")
    finally:
        folder.close()
    return run, results


def _read_shard(path: Path) -> ShardRun:
    run, results = read_run(path)
    return ShardRun(path, run, read_plan(path), {result.cell.id: result for result in results})


def _require_all_shards(shards: Sequence[ShardRun]) -> None:
    given: dict[str, ShardRun] = {}
    for shard in shards:
        if shard.shard in given:
            raise RunFolderError(
                f"{given[shard.shard].path} and {shard.path} are both shard {shard.shard}: give it once."
            )
        given[shard.shard] = shard
    counts = {shard.shard.partition("/")[2]: shard for shard in shards}
    if len(counts) > 1:
        (one, first), (other, second) = list(counts.items())[:2]
        raise RunFolderError(f"{first.path} is one of {one} shards and {second.path} one of {other}: give one sweep's.")
    count = int(next(iter(counts)))
    missing = [f"{index}/{count}" for index in range(1, count + 1) if f"{index}/{count}" not in given]
    if missing:
        raise RunFolderError(f"Shard {', '.join(missing)} is missing: give a run folder for every shard.")


def _require_same_sweep(first: ShardRun, other: ShardRun) -> None:
    """Raise RunFolderError if two shards have different plans, versions, numerics or weights."""
    digests = weights_digests(other.run)
    for checkpoint, digest in weights_digests(first.run).items():
        theirs = digests.get(checkpoint, digest)
        if bool(digest) != bool(theirs):  # then the two shards split different cells
            having, lacking = (first, other) if digest else (other, first)
            raise RunFolderError(
                f"{checkpoint} was available to {having.path} but not to {lacking.path}: bring it there, continue "
                f"{lacking.path} with `sweep --resume`, and merge again."
            )
        if digest != theirs:
            raise _not_one_sweep(first, other, f"other weights ({checkpoint} {digest}, now {theirs})")
    for difference in differences(first.run, other.run):
        if difference.part in (
            "versions",
            "stages",
            "numerics",
            "source",
        ):  # machines may differ: the merged run lists them
            raise _not_one_sweep(first, other, f"other {difference.part} ({difference})")
        if difference.part == "settings" and difference.name != "shard":
            raise _not_one_sweep(first, other, f"another plan ({difference})")


def _not_one_sweep(first: ShardRun, other: ShardRun, what: str) -> RunFolderError:
    return RunFolderError(f"{first.path} and {other.path} are runs of {what}: only shards of one sweep can be merged.")


def _require_whole_plan(shards: Sequence[ShardRun], plan: Sequence[PlannedCell]) -> None:
    """Raise RunFolderError if the cells of all shards are not the plan that each shard is a part of."""
    merged = WholePlan.of([one.cell for one in plan])
    for shard in shards:
        if shard.run.plan != merged:
            raise RunFolderError(
                f"{shard.path} is a part of {shard.run.plan}, and the shards together are {merged}: only shards of one "
                "sweep can be merged."
            )


def _merged_description(shards: Sequence[ShardRun]) -> Run:
    first = min(shards, key=lambda shard: int(shard.shard.partition("/")[0])).run
    machines = [shard.run.environment.get("machine") for shard in shards]
    others = [machine for machine in machines if machine != first.environment.get("machine")]
    environment = {**first.environment, **({"other_machines": others} if others else {})}
    return first.model_copy(
        update={
            "created": min(shard.run.created for shard in shards),
            "settings": {**first.settings, "shard": None},
            "environment": environment,
        }
    )


def _result(planned: PlannedCell, shards: Sequence[ShardRun]) -> CellResult:
    """Return the result of a cell; an error if its shard ended before it."""
    cell = planned.cell
    if found := [shard.results[cell.id] for shard in shards if cell.id in shard.results]:
        return reduce(reconcile, found)
    own = next(shard for shard in shards if any(one.cell.id == cell.id for one in shard.plan))
    (error,) = lost([cell], f"shard {own.shard} ended before it: `cgverify sweep --resume` goes on in {own.path}")
    return error
