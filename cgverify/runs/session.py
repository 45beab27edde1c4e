"""An order -> a run: what is asked for is planned, carried out, and kept in a run folder. Nothing is printed here."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cgverify.checkpoint.lookup import (
    CheckpointRequest,
    FoundCheckpoints,
    find_checkpoint,
    find_checkpoints,
    name_of,
    sketch,
)
from cgverify.checkpoint.prompt import UNSEEN, prompt_for
from cgverify.checkpoint.source import Source
from cgverify.common.environment import machine, pin_numerics, versions
from cgverify.common.errors import NothingToVerifyError, UsageError
from cgverify.common.records import Cell, CellResult, Run, Verdict, WholePlan
from cgverify.observe import candidate
from cgverify.plan.batches import CellBatch, Executor, Job, batches, unfinished_batches
from cgverify.plan.cells import PROMPTED, Axes, CheckpointAxes, Shard, plan
from cgverify.plan.cost.estimate import Estimate
from cgverify.plan.cost.headroom import forecast, require_room, without_room
from cgverify.plan.cost.memory import available, taken
from cgverify.plan.cost.of_plan import memory, seconds
from cgverify.plan.yaml_plan import SweepConfig
from cgverify.runs.execute.cluster import Cluster
from cgverify.runs.execute.dask import Dask
from cgverify.runs.execute.in_process import InProcess
from cgverify.runs.execute.processes import Processes
from cgverify.runs.folder import SOURCES, Planned, RunFolder, begun, either


@dataclass(frozen=True)
class ExecutionOptions:
    """How an order is carried out."""

    threads: int | None = None
    """Of torch in each process; None is all processors, shared among the jobs."""
    jobs: int = 1
    cluster: Cluster | None = None
    """A Dask cluster that carries it out; None is this machine without one."""
    allow: tuple[str, ...] = ()
    """Shortcuts of products that are left on; see `cgverify.common.environment.SHORTCUTS`."""
    shard: Shard | None = None
    keep_tensors: str = "failed"
    warnings: bool = False


@dataclass(frozen=True)
class Text:
    """Where a prompt comes from: `--prompt`, `--tokens`, or by default the package itself."""

    prompt: str | None = None
    tokens: Path | None = None


@dataclass(frozen=True)
class RunRequest:
    """What is asked for."""

    command: str
    name: str
    requests: tuple[CheckpointAxes, ...]
    settings: dict[str, Any]
    """As run.json tells them."""
    find: Callable[[Iterable[CheckpointRequest]], FoundCheckpoints]
    config: SweepConfig | None = None
    """Where the requests come from a plan: its rules."""
    file: Path | None = None
    """Where that was read from."""
    text: Text = Text()
    """For the cases of a prompt."""


@dataclass(frozen=True)
class PreparedRun:
    """A run that can begin."""

    run: Run
    plan: tuple[Planned, ...]
    found: FoundCheckpoints
    options: ExecutionOptions

    @property
    def cells(self) -> list[Cell]:
        """What this run is to verify, in report order."""
        return [planned.cell for planned in self.plan]

    @property
    def batches(self) -> list[CellBatch]:
        return batches(self.cells, self.found.checkpoints.values())

    @property
    def forecast(self) -> Estimate:
        """What it will take on this machine."""
        return forecast(_by_digest(self.found), self.cells, self.options.jobs)

    def job(self, folder: Path | None = None) -> Job:
        """What workers must know.

        Args:
            folder: the run folder; None keeps no tensors.
        """
        return Job(
            candidates=tuple(self.run.settings[SOURCES]),
            threads=self.run.environment["numerics"]["threads"],
            allow=self.options.allow,
            folder=folder and folder.absolute(),  # a candidate may be elsewhere when tensors are kept
            keep_tensors=self.options.keep_tensors,
            warnings=self.options.warnings,
        )

    def executor(self) -> Executor:
        if self.options.cluster is not None:
            return Dask(self.options.cluster, memory, seconds)
        return InProcess(self.found.sources) if self.options.jobs == 1 else Processes(self.options.jobs)


def one_checkpoint(command: str, model: str, weights: str, axes: Axes, text: Text = Text()) -> RunRequest:
    """Axes over a checkpoint that must be had."""
    said = {"prompt": text.prompt, "tokens": None if text.tokens is None else str(text.tokens)}
    return RunRequest(
        command=command,
        name=name_of(model),
        requests=(CheckpointAxes(model, weights, axes),),
        settings={"model": model, "weights": weights, **asdict(axes), **said},
        find=lambda _: find_checkpoint(model, weights),
        text=text,
    )


def sweep_of(config: SweepConfig, name: str, file: Path | None = None) -> RunRequest:
    """A plan; a checkpoint that cannot be had leaves the others to be run."""
    return RunRequest(
        command="sweep",
        name=name,
        requests=tuple(config.all_requests()),
        settings=config.model_dump(mode="json"),
        find=find_checkpoints,
        config=config,
        file=file,
    )


def prepare(order: RunRequest, options: ExecutionOptions) -> PreparedRun:
    """Find candidates and checkpoints, plan, and describe the run.

    Raises:
        UsageError: what is asked for cannot be.
        NothingToVerifyError: no cell is left.
    """
    names = dict.fromkeys(name for request in order.requests for name in request.axes.candidates)
    with _told_of(order):
        sources = {name: candidate.find_candidate(name).source for name in names}
        found = _with_prompts(order, order.find(asked_by(order)))
        cells = whole_plan(order, found)
    found = _with_room(order, found, cells, options)
    places = {cell.id: place for place, cell in enumerate(cells)}
    planned = tuple(Planned(place=places[cell.id], cell=cell) for cell in _dealt(options.shard, cells, found))
    settings = {
        **order.settings,
        SOURCES: sources,
        "keep_tensors": options.keep_tensors,
        "allow": options.allow,
        "shard": options.shard and str(options.shard),
    }
    numerics = pin_numerics(_threads(options), options.allow)
    run = describe(order.command, order.name, found, settings, numerics)
    return PreparedRun(run.model_copy(update={"plan": WholePlan.of(cells)}), planned, found, options)


def outline(order: RunRequest, options: ExecutionOptions) -> list[CellBatch]:
    """The batches that an order comes to, without weights: nothing is fetched, read or imported.

    Raises:
        UsageError: see `whole_plan`.
    """
    with _told_of(order):
        found = _with_prompts(order, FoundCheckpoints({asked: sketch(*asked) for asked in asked_by(order)}))
        cells = whole_plan(order, found)
    return batches(_dealt(options.shard, cells, found), found.checkpoints.values())


@contextlib.contextmanager
def _told_of(order: RunRequest) -> Iterator[None]:
    """Begin the sentence about what cannot be with the file that asks for it."""
    try:
        yield
    except (UsageError, NothingToVerifyError) as error:
        if order.file is not None:
            error.args = (f"{order.file}: {error}",)
        raise


def asked_by(order: RunRequest) -> list[CheckpointRequest]:
    """The checkpoints of an order, each once."""
    return list(dict.fromkeys((request.model, request.weights) for request in order.requests))


def _with_room(
    order: RunRequest, found: FoundCheckpoints, cells: Sequence[Cell], options: ExecutionOptions
) -> FoundCheckpoints:
    """The same, each checkpoint of a plan that does not fit into memory with that as its problem.

    Raises:
        MemoryShortError: one that must be had does not.
    """
    if options.cluster is not None and options.cluster.scheduler is not None:  # its workers declare what they have
        return found
    room = (available() + taken()) // options.jobs
    if order.config is None:
        for request in order.requests:
            asked = request.model, request.weights
            require_room(request, found.checkpoints[asked], found.sources[asked], room)
        return found
    problems = without_room(_by_digest(found), cells, room)
    told = {
        asked: one.model_copy(update={"problem": problems[one.digest]}) if one.digest in problems else one
        for asked, one in found.checkpoints.items()
    }
    return replace(found, checkpoints=told)


def _by_digest(found: FoundCheckpoints) -> dict[str, Source]:
    return {found.checkpoints[asked].digest: source for asked, source in found.sources.items()}


def _with_prompts(order: RunRequest, found: FoundCheckpoints) -> FoundCheckpoints:
    """The same, each checkpoint that is asked for a prompt's cases with one in its own tokens.

    Raises:
        UsageError: see `prompt_for`.
    """
    checkpoints = dict(found.checkpoints)
    for model, weights in _prompted(order):
        source = found.sources.get((model, weights))
        prompt = UNSEEN if source is None else prompt_for(model, source, order.text.prompt, order.text.tokens)
        checkpoints[model, weights] = checkpoints[model, weights].model_copy(update={"prompt": prompt})
    return replace(found, checkpoints=checkpoints)


def _prompted(order: RunRequest) -> list[CheckpointRequest]:
    """The checkpoints that are asked for a prompt's cases."""
    asked = [(one.model, one.weights) for one in order.requests if set(PROMPTED) & set(one.axes.cases)]
    return list(dict.fromkeys(asked))


def whole_plan(order: RunRequest, found: FoundCheckpoints) -> list[Cell]:
    """Every cell of an order.

    Raises:
        UsageError: see `cgverify.plan.cells.plan` and `SweepConfig.require_sense`.
    """
    if order.config is None:
        return plan(order.requests, found.checkpoints)
    cells = plan(order.requests, found.checkpoints, order.config.excluded, order.config.setting_excluded)
    before = plan(order.requests, found.checkpoints) if order.config.exclude else cells
    order.config.require_sense(cells, before, [one for one in found.checkpoints.values() if not one.n_layers])
    return cells


def _dealt(shard: Shard | None, cells: Sequence[Cell], found: FoundCheckpoints) -> list[Cell]:
    """What of a plan falls to a shard; of a checkpoint that cannot be had at least one cell, so that it cannot pass."""
    if shard is None:
        return list(cells)
    own = {cell.id for cell in shard.of(cells)}
    for checkpoint in found.checkpoints.values():
        if checkpoint.problem:
            of_it = [cell.id for cell in cells if (cell.model, cell.weights) == (checkpoint.name, checkpoint.digest)]
            if own.isdisjoint(of_it):
                own.update(of_it[:1])
    return [cell for cell in cells if cell.id in own]


def _threads(options: ExecutionOptions) -> int | None:
    if options.threads is not None or options.jobs == 1:
        return options.threads
    return max(1, int(machine()["processors"]) // options.jobs)


def describe(
    command: str, name: str, found: FoundCheckpoints, settings: dict[str, Any], numerics: dict[str, Any]
) -> Run:
    """What a run is, and where.

    Args:
        numerics: from `pin_numerics`.
    """
    checkpoints = tuple(found.checkpoints.values())
    alone = checkpoints[0] if len(checkpoints) == 1 else None
    digests = "".join(checkpoint.digest for checkpoint in checkpoints)
    return Run(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        model=alone.name if alone else name,
        weights_origin=alone.origin if alone else f"{len(checkpoints)} checkpoints",
        weights_digest=alone.digest if alone else hashlib.sha256(digests.encode()).hexdigest()[:16],
        checkpoints=checkpoints,
        settings=settings,
        environment={"versions": versions(), "machine": machine(), "numerics": numerics},
    )


@dataclass
class RunSession:
    """A run that goes on: what is finished, and the folder that keeps it."""

    prepared: PreparedRun
    folder: RunFolder
    results: dict[str, CellResult] = field(default_factory=dict)
    """By cell id, the latest that counts."""

    @classmethod
    def start(cls, prepared: PreparedRun, path: Path) -> RunSession:
        """A new run.

        Raises:
            RunFolderError: see `RunFolder.create`.
        """
        return cls(prepared, RunFolder.create(path, prepared.run, prepared.plan))

    @classmethod
    def resume(cls, prepared: PreparedRun, path: Path) -> RunSession:
        """The run in a folder, continued; or a new one where nothing is there yet.

        Raises:
            RunFolderError: see `RunFolder.resume`.
        """
        if not begun(path):
            return cls.start(prepared, path)
        folder, finished = RunFolder.resume(path, prepared.run, prepared.plan)
        planned = {cell.id for cell in prepared.cells}  # a cell may only have stood for a checkpoint that was not here
        return cls(prepared, folder, {result.cell.id: result for result in finished if result.cell.id in planned})

    @classmethod
    def rerun_failed(cls, prepared: PreparedRun, path: Path) -> RunSession:
        """The run in a folder, continued, as if what failed had not been run.

        Raises:
            RunFolderError: see `RunFolder.resume`.
        """
        session = cls.resume(prepared, path)
        failed = [
            result.cell
            for result in session.results.values()
            if result.verdict.fails or result.verdict is Verdict.ERROR
        ]
        session.folder.forget(failed)
        for cell in failed:
            del session.results[cell.id]
        return session

    @property
    def left(self) -> list[CellBatch]:
        """The batches with a cell that is not finished. Errors are tried again."""
        finished = {cell for cell, result in self.results.items() if result.verdict is not Verdict.ERROR}
        return unfinished_batches(self.prepared.batches, finished)

    def carry_out(self, deadline: float | None = None) -> Generator[CellResult, None, None]:
        """Verify what is left, each result kept before it is seen.

        Args:
            deadline: of `time.monotonic()`, after which no more results are taken.

        Raises:
            StorageError: the folder cannot be written any longer.
        """
        for result in self.prepared.executor().run(self.left, self.prepared.job(self.folder.path)):
            yield self._keep(result)
            if deadline is not None and time.monotonic() > deadline:
                return

    def _keep(self, result: CellResult) -> CellResult:
        """Write a result down, unless the same is written already: its batch was run in part."""
        before = self.results.get(result.cell.id)
        counts = result if before is None else either(before, result)
        if counts is not before:
            self.folder.append(result)
            self.results[result.cell.id] = counts
        return counts

    @property
    def ordered(self) -> list[CellResult]:
        """What is finished, in the plan's order."""
        return [self.results[cell.id] for cell in self.prepared.cells if cell.id in self.results]


def require_cells(prepared: PreparedRun) -> None:
    """Raise NothingToVerifyError for a shard that nothing was dealt to."""
    if not prepared.plan:
        raise NothingToVerifyError(
            f"Shard {prepared.options.shard} has no cell of this plan: give fewer shards. (Its run folder is there, "
            "for merge.)"
        )
