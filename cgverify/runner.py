"""An order -> a run: what is asked for is planned, carried out, and kept in a run folder. Nothing is printed here."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cgverify import candidate
from cgverify.config import SweepConfig
from cgverify.environment import machine, pin_numerics, versions
from cgverify.errors import NothingToVerifyError
from cgverify.execute.checkpoints import Asked, Found, find, found_one, name_of, sketch
from cgverify.execute.cluster import Cluster
from cgverify.execute.dask import Dask
from cgverify.execute.in_process import InProcess
from cgverify.execute.processes import Processes
from cgverify.execute.work import Executor, Job, Unit, unfinished, units
from cgverify.plan import Axes, Request, Shard, plan
from cgverify.records import Cell, CellResult, Run, Verdict
from cgverify.store import Planned, RunFolder, begun, either


@dataclass(frozen=True)
class Means:
    """How an order is carried out."""

    threads: int | None = None
    """Of torch in each process; None is all processors, shared among the jobs."""
    jobs: int = 1
    cluster: Cluster | None = None
    """A Dask cluster that carries it out; None is this machine without one."""
    allow: tuple[str, ...] = ()
    """Shortcuts of products that are left on; see `cgverify.environment.SHORTCUTS`."""
    shard: Shard | None = None
    keep_tensors: str = "failed"
    warnings: bool = False


@dataclass(frozen=True)
class Order:
    """What is asked for."""

    command: str
    name: str
    requests: tuple[Request, ...]
    settings: dict[str, Any]
    """As run.json tells them."""
    find: Callable[[Iterable[Asked]], Found]
    config: SweepConfig | None = None
    """Where the requests come from a file: its rules."""


@dataclass(frozen=True)
class Prepared:
    """A run that can begin."""

    run: Run
    plan: tuple[Planned, ...]
    found: Found
    means: Means

    @property
    def cells(self) -> list[Cell]:
        """What this run is to verify, in report order."""
        return [planned.cell for planned in self.plan]

    @property
    def units(self) -> list[Unit]:
        return units(self.cells, self.found.checkpoints.values())

    def job(self, folder: Path | None = None) -> Job:
        """What workers must know.

        Args:
            folder: the run folder; None keeps no tensors.
        """
        return Job(
            candidates=tuple(self.run.settings["candidate_sources"]),
            threads=self.run.environment["numerics"]["threads"],
            allow=self.means.allow,
            folder=folder,
            keep_tensors=self.means.keep_tensors,
            warnings=self.means.warnings,
        )

    def executor(self) -> Executor:
        if self.means.cluster is not None:
            return Dask(self.means.cluster)
        return InProcess(self.found.sources) if self.means.jobs == 1 else Processes(self.means.jobs)


def one_checkpoint(command: str, model: str, weights: str, axes: Axes) -> Order:
    """Axes over a checkpoint that must be had."""
    return Order(
        command=command,
        name=name_of(model),
        requests=(Request(model, weights, axes),),
        settings={"model": model, "weights": weights, **asdict(axes)},
        find=lambda _: found_one(model, weights),
    )


def sweep_of(config: SweepConfig, name: str) -> Order:
    """A plan from a file; a checkpoint that cannot be had leaves the others to be run."""
    return Order(
        command="sweep",
        name=name,
        requests=tuple(config.all_requests()),
        settings=config.model_dump(mode="json"),
        find=find,
        config=config,
    )


def prepare(order: Order, means: Means) -> Prepared:
    """Find candidates and checkpoints, plan, and describe the run.

    Raises:
        UsageError: what is asked for cannot be.
        NothingToVerifyError: no cell is left.
    """
    names = dict.fromkeys(name for request in order.requests for name in request.axes.candidates)
    sources = {name: candidate.find(name).source for name in names}
    found = order.find(asked_by(order))
    cells = whole_plan(order, found)
    planned = tuple(Planned(place=place, cell=cell) for place, cell in enumerate(cells))
    if means.shard is not None:
        own = {cell.id for cell in means.shard.of(cells)}
        planned = tuple(one for one in planned if one.cell.id in own)
    settings = {
        **order.settings,
        "candidate_sources": sources,
        "keep_tensors": means.keep_tensors,
        "allow": means.allow,
        "shard": means.shard and str(means.shard),
    }
    numerics = pin_numerics(_threads(means), means.allow)
    return Prepared(describe(order.command, order.name, found, settings, numerics), planned, found, means)


def outline(order: Order, means: Means) -> list[Unit]:
    """The units that an order comes to, without weights: nothing is fetched, read or imported.

    Raises:
        UsageError: see `whole_plan`.
    """
    found = Found({asked: sketch(*asked) for asked in asked_by(order)})
    cells = whole_plan(order, found)
    return units(cells if means.shard is None else means.shard.of(cells), found.checkpoints.values())


def asked_by(order: Order) -> list[Asked]:
    """The checkpoints of an order, each once."""
    return list(dict.fromkeys((request.model, request.weights) for request in order.requests))


def whole_plan(order: Order, found: Found) -> list[Cell]:
    """Every cell of an order.

    Raises:
        UsageError: see `cgverify.plan.plan` and `SweepConfig.require_sense`.
    """
    if order.config is None:
        return plan(order.requests, found.checkpoints)
    cells = plan(order.requests, found.checkpoints, order.config.excluded)
    if order.config.exclude:
        order.config.require_sense(cells, plan(order.requests, found.checkpoints))
    else:
        order.config.require_sense(cells, cells)
    return cells


def _threads(means: Means) -> int | None:
    if means.threads is not None or means.jobs == 1:
        return means.threads
    return max(1, int(machine()["processors"]) // means.jobs)


def describe(command: str, name: str, found: Found, settings: dict[str, Any], numerics: dict[str, Any]) -> Run:
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
class Campaign:
    """A run that goes on: what is finished, and the folder that keeps it."""

    prepared: Prepared
    folder: RunFolder
    results: dict[str, CellResult] = field(default_factory=dict)
    """By cell id, the latest that counts."""

    @classmethod
    def start(cls, prepared: Prepared, path: Path) -> Campaign:
        """A new run.

        Raises:
            RunFolderError: see `RunFolder.create`.
        """
        return cls(prepared, RunFolder.create(path, prepared.run, prepared.plan))

    @classmethod
    def resume(cls, prepared: Prepared, path: Path) -> Campaign:
        """The run in a folder, continued; or a new one where a start was killed before there was a run.

        Raises:
            RunFolderError: see `RunFolder.resume`.
        """
        if not begun(path):
            return cls.start(prepared, path)
        folder, finished = RunFolder.resume(path, prepared.run, prepared.plan)
        return cls(prepared, folder, {result.cell.id: result for result in finished})

    @classmethod
    def rerun_failed(cls, prepared: Prepared, path: Path) -> Campaign:
        """The run in a folder, continued, as if what failed had not been run.

        Raises:
            RunFolderError: see `RunFolder.resume`.
        """
        campaign = cls.resume(prepared, path)
        failed = [
            result.cell
            for result in campaign.results.values()
            if result.verdict.fails or result.verdict is Verdict.ERROR
        ]
        campaign.folder.forget(failed)
        for cell in failed:
            del campaign.results[cell.id]
        return campaign

    @property
    def left(self) -> list[Unit]:
        """The units with a cell that is not finished. Errors are tried again."""
        finished = {cell for cell, result in self.results.items() if result.verdict is not Verdict.ERROR}
        return unfinished(self.prepared.units, finished)

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
        """Write a result down, unless the same is written already: its unit was run in part."""
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


def require_cells(prepared: Prepared) -> None:
    """Raise NothingToVerifyError for a shard that nothing was dealt to."""
    if not prepared.plan:
        raise NothingToVerifyError(
            f"Shard {prepared.means.shard} has no cell of this plan: give fewer shards. (Its run folder is there, for "
            "merge.)"
        )
