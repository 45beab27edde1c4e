"""What a user asks for, and how it is to be carried out. Importing this needs no torch."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgverify.common.errors import UsageError
from cgverify.plan.axes import Axes, CheckpointAxes
from cgverify.plan.cells import Shard
from cgverify.plan.yaml_plan import SweepConfig


@dataclass(frozen=True)
class ExecutionOptions:
    """How a request is carried out.

    Raises:
        UsageError: `scheduler` is not an address, is combined with `jobs`, or needs a package that is not installed.
    """

    threads: int | None = None
    """torch threads in each process; None takes the processors of this process, divided among the jobs, or what
    `cgverify.plan.cost.share` says if `jobs` is None too."""
    jobs: int | None = 1
    """Local processes that share the work; None takes what `cgverify.plan.cost.share` says."""
    scheduler: str | None = None
    """The address of a Dask scheduler whose workers do the work, `tcp://host:port` or `tls://host:port`."""
    allow: tuple[str, ...] = ()
    """Shortcuts of matrix products that stay switched on."""
    shard: Shard | None = None
    keep_tensors: str = "failed"
    warnings: bool = False
    """Whether warnings of libraries are shown."""

    def __post_init__(self) -> None:
        if self.scheduler is None:
            return
        if (self.jobs or 1) > 1:
            raise UsageError("--jobs cannot be combined with --scheduler: a cluster has the workers that were started.")
        if importlib.util.find_spec("distributed") is None:
            raise UsageError("A Dask cluster needs dask.distributed: pip install 'cgverify[dask]'.")
        if not re.fullmatch(r"(tcp|tls)://.+:\d+", self.scheduler):
            raise UsageError(f"--scheduler {self.scheduler!r} is not an address: write tcp://host:8786.")


@dataclass(frozen=True)
class RunRequest:
    """What is to be verified."""

    command: str
    name: str
    """The model, or the plan of a sweep."""
    checkpoints: tuple[CheckpointAxes, ...]
    settings: dict[str, Any]
    """The settings that run.json records."""
    config: SweepConfig | None = None
    """The plan of a sweep. None for one checkpoint, which must be available."""
    file: Path | None = None
    """The file of that plan, which error messages name."""
    prompt: str | None = None
    """The text of `--prompt`. Without it and `tokens`, the prompt is a text of the package."""
    tokens: Path | None = None
    """The file of `--tokens`."""

    @property
    def models(self) -> list[tuple[str, str]]:
        """Each model with its `--weights`, once."""
        return list(dict.fromkeys((one.model, one.weights) for one in self.checkpoints))


def one_checkpoint(
    command: str, model: str, weights: str, axes: Axes, prompt: str | None = None, tokens: Path | None = None
) -> RunRequest:
    """Return the request to verify one checkpoint."""
    settings = {
        **axes.model_dump(mode="json", include=set(Axes.model_fields) - {"limits"}),
        "most_layers": None,  # a setting of older runs, with which this one may be compared
        "prompt": prompt,
        "tokens": None if tokens is None else str(tokens),
    }
    return RunRequest(
        command=command,
        name=model,
        checkpoints=(CheckpointAxes(model, weights, axes),),
        settings={"model": model, "weights": weights, **settings},
        prompt=prompt,
        tokens=tokens,
    )


def sweep_of(config: SweepConfig, name: str, file: Path | None = None) -> RunRequest:
    """Return the request to carry out a plan. A checkpoint that is unavailable leaves the others to be verified."""
    return RunRequest(
        command="sweep",
        name=name,
        checkpoints=tuple(config.all_requests()),
        settings=config.model_dump(mode="json"),
        config=config,
        file=file,
    )
