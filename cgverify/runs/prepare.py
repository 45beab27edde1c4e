"""A request -> a run that can start: find what it names, plan its cells, and check that they fit in memory."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cgverify.checkpoint.lookup import FoundCheckpoints, find_checkpoint, find_checkpoints, sketch
from cgverify.checkpoint.prompt import UNSEEN, prompt_for
from cgverify.common.errors import NothingToVerifyError, UsageError
from cgverify.common.memory import available, taken
from cgverify.common.numerics import machine, pin_numerics, versions
from cgverify.common.processors import processors
from cgverify.common.records import Cell, Checkpoint, Run, WholePlan
from cgverify.observe.candidate import find_candidate
from cgverify.observe.generations import installed
from cgverify.plan.batches import CellBatch, Job, batches
from cgverify.plan.cases import PROMPTED
from cgverify.plan.cells import Shard, plan
from cgverify.plan.cost.fit import require_room, without_room
from cgverify.plan.cost.memory import peaks
from cgverify.plan.cost.share import largest_process, processes, threads_of_each
from cgverify.runs.differences import CANDIDATE_SOURCES
from cgverify.runs.reading import PlannedCell
from cgverify.runs.request import ExecutionOptions, RunRequest


@dataclass(frozen=True)
class PreparedRun:
    """A run that can start."""

    run: Run
    plan: tuple[PlannedCell, ...]
    found: FoundCheckpoints
    options: ExecutionOptions
    jobs: int
    """The local processes that share the work."""

    @property
    def cells(self) -> list[Cell]:
        """The cells to verify, in report order."""
        return [planned.cell for planned in self.plan]

    @property
    def batches(self) -> list[CellBatch]:
        return batches(self.cells, self.found.checkpoints.values())

    @property
    def peak_bytes(self) -> int:
        """The estimated memory of all processes."""
        return self.jobs * max(peaks(self.found, self.cells).values(), default=0)

    def job(self, folder: Path | None = None) -> Job:
        """Return what every worker has to know.

        Args:
            folder: the run folder; None keeps no tensors.
        """
        return Job(
            candidates=tuple(self.run.settings[CANDIDATE_SOURCES]),
            threads=self.run.environment["numerics"]["threads"],
            allow=self.options.allow,
            folder=folder and folder.absolute(),  # a candidate may change the working directory
            keep_tensors=self.options.keep_tensors,
            warnings=self.options.warnings,
        )

    def require_cells(self) -> None:
        """Raise NothingToVerifyError if the plan has no cell for this shard."""
        if not self.plan:
            raise NothingToVerifyError(
                f"Shard {self.options.shard} has no cell of this plan: give fewer shards. (Its run folder was written, "
                "so that the shards can be merged.)"
            )


def prepare(request: RunRequest, options: ExecutionOptions) -> PreparedRun:
    """Find candidates and checkpoints, plan the cells, and describe the run.

    Raises:
        UsageError: a candidate or checkpoint cannot be found, or the plan makes no sense.
        NothingToVerifyError: the plan excludes every cell.
        MemoryShortError: the one checkpoint of the request does not fit in memory.
    """
    candidates = dict.fromkeys(name for one in request.checkpoints for name in one.axes.candidates)
    with _errors_name_the_plan_file(request):
        sources = {name: find_candidate(name).source for name in candidates}
        found = find_checkpoints(request.models) if request.config else find_checkpoint(*request.models[0])
        found = _with_prompts(request, found)
        cells = _plan_cells(request, found)
    if options.scheduler is None:  # the workers of a cluster declare their own memory
        found = _require_memory(request, found, cells, (available() + taken()) // (options.jobs or 1))
    places = {cell.id: place for place, cell in enumerate(cells)}
    own = _cells_of_shard(options.shard, cells, found)
    jobs, threads = _share(options, own, found)
    settings = {
        **request.settings,
        CANDIDATE_SOURCES: sources,
        "keep_tensors": options.keep_tensors,
        "allow": options.allow,
        "shard": options.shard and str(options.shard),
    }
    run = describe_run(request.command, request.name, found, settings, pin_numerics(threads, options.allow))
    return PreparedRun(
        run=run.model_copy(update={"plan": WholePlan.of(cells)}),
        plan=tuple(PlannedCell(place=places[cell.id], cell=cell) for cell in own),
        found=found,
        options=options,
        jobs=jobs,
    )


def outline(request: RunRequest, options: ExecutionOptions) -> list[CellBatch]:
    """Return the batches of a request, as `prepare` plans them, but read only configs and download nothing."""
    with _errors_name_the_plan_file(request):
        found = _with_prompts(request, FoundCheckpoints({one: sketch(*one) for one in request.models}))
        cells = _plan_cells(request, found)
    return batches(_cells_of_shard(options.shard, cells, found), found.checkpoints.values())


def describe_run(
    command: str, name: str, found: FoundCheckpoints, settings: dict[str, Any], numerics: dict[str, Any]
) -> Run:
    """Return the description of a run that starts now, on this machine.

    Args:
        name: the run's name if it has several checkpoints.
        numerics: from `pin_numerics`.
    """
    checkpoints = tuple(found.checkpoints.values())
    only = checkpoints[0] if len(checkpoints) == 1 else None
    digests = "".join(checkpoint.digest for checkpoint in checkpoints)
    return Run(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        model=only.name if only else name,
        weights_origin=only.origin if only else f"{len(checkpoints)} checkpoints",
        weights_digest=only.digest if only else hashlib.sha256(digests.encode()).hexdigest()[:16],
        checkpoints=checkpoints,
        settings=settings,
        environment={
            "versions": versions(),
            "stages": dict(installed().definitions),
            "machine": machine(),
            "numerics": numerics,
        },
    )


@contextlib.contextmanager
def _errors_name_the_plan_file(request: RunRequest) -> Iterator[None]:
    try:
        yield
    except (UsageError, NothingToVerifyError) as error:
        if request.file is not None:
            error.args = (f"{request.file}: {error}",)
        raise


def _with_prompts(request: RunRequest, found: FoundCheckpoints) -> FoundCheckpoints:
    """Add a prompt, in a checkpoint's own tokens, to each checkpoint that is verified with a prompt."""
    checkpoints = dict(found.checkpoints)
    for one in request.checkpoints:
        if not set(PROMPTED) & set(one.axes.cases):
            continue
        key = one.model, one.weights
        source = found.sources.get(key)
        prompt = UNSEEN if source is None else prompt_for(one.model, source, request.prompt, request.tokens)
        checkpoints[key] = checkpoints[key].model_copy(update={"prompt": prompt})
    return replace(found, checkpoints=checkpoints)


def _plan_cells(request: RunRequest, found: FoundCheckpoints) -> list[Cell]:
    config = request.config
    if config is None:
        return plan(request.checkpoints, found.checkpoints)
    cells = plan(request.checkpoints, found.checkpoints, config.exclude)
    before = plan(request.checkpoints, found.checkpoints) if config.exclude else cells
    config.require_sense(cells, before, [one for one in found.checkpoints.values() if not one.n_layers])
    return cells


def _require_memory(
    request: RunRequest, found: FoundCheckpoints, cells: Sequence[Cell], available_bytes: int
) -> FoundCheckpoints:
    """Record as a problem of each checkpoint of a sweep that it does not fit in memory.

    Raises:
        MemoryShortError: the one checkpoint of a request that is not a sweep does not fit.
    """
    if request.config is None:
        (one,), (key,) = request.checkpoints, request.models
        require_room(one.axes, found.checkpoints[key], found.sources[key].stored_width, available_bytes)
        return found
    problems = without_room(peaks(found, cells), available_bytes)

    def checked(checkpoint: Checkpoint) -> Checkpoint:
        return checkpoint.model_copy(update={"problem": problems.get(checkpoint.digest, checkpoint.problem)})

    return replace(found, checkpoints={key: checked(one) for key, one in found.checkpoints.items()})


def _share(options: ExecutionOptions, cells: Sequence[Cell], found: FoundCheckpoints) -> tuple[int, int | None]:
    """Return how many processes share the cells, and the threads of each; None leaves torch's number."""
    jobs, threads = options.jobs, options.threads
    at_once = processors()
    if jobs is None and options.scheduler is None:
        largest = largest_process(peaks(found, cells), cells, list(found.checkpoints.values()))
        if threads is None and "OMP_NUM_THREADS" not in os.environ:
            threads = threads_of_each(largest)
        each = threads or min(torch.get_num_threads(), at_once)
        planned = batches(cells, found.checkpoints.values())
        return processes(planned, largest, available() + taken(), max(1, at_once // each)), threads
    if threads is None and jobs is not None and jobs > 1:
        threads = max(1, at_once // jobs)
    return jobs or 1, threads


def _cells_of_shard(shard: Shard | None, cells: Sequence[Cell], found: FoundCheckpoints) -> list[Cell]:
    """Return the shard's cells, plus one error cell for each checkpoint that is unavailable."""
    if shard is None:
        return list(cells)
    own = {cell.id for cell in shard.of(cells)}
    for checkpoint in found.checkpoints.values():
        if checkpoint.problem:
            of_it = [cell.id for cell in cells if (cell.model, cell.weights) == (checkpoint.name, checkpoint.digest)]
            if own.isdisjoint(of_it):
                own.update(of_it[:1])
    return [cell for cell in cells if cell.id in own]
