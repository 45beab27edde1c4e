"""What tests of sweeps share: a plan, run in this process or by others."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

from cgverify.plan.cells import Shard
from cgverify.plan.yaml_plan import parse_plan
from cgverify.report.frames import write_csv
from cgverify.runs.execute.cluster import Cluster
from cgverify.runs.session import ExecutionOptions, PreparedRun, RunSession, prepare, sweep_of

SMALL: dict[str, Any] = {
    "models": ["codegen-nano"],
    "layers": [0, 3],
    "components": ["attn", "ln1", "mlp.out", "embed"],
    "dtypes": ["float32", "bfloat16"],
    "cases": ["default", "decode"],
}
"""A plan of 18 cells in 6 batches."""


def prepared(
    described: dict[str, Any], *, jobs: int = 1, shard: Shard | None = None, cluster: Cluster | None = None
) -> PreparedRun:
    return prepare(
        sweep_of(parse_plan(described), "small"), ExecutionOptions(threads=1, jobs=jobs, shard=shard, cluster=cluster)
    )


def swept(
    described: dict[str, Any],
    path: Path,
    *,
    jobs: int = 1,
    shard: Shard | None = None,
    cluster: Cluster | None = None,
) -> RunSession:
    """A plan carried out, with its CSV files."""
    session = RunSession.start(prepared(described, jobs=jobs, shard=shard, cluster=cluster), path)
    for _ in session.carry_out():
        pass
    session.folder.close()
    write_csv(path, session.ordered)
    return session


def command_line(*arguments: str, limit: int | None = None) -> multiprocessing.process.BaseProcess:
    """`cgverify` as a real process, which starts at once: it is forked from a server that has imported torch.

    Args:
        limit: bytes that a file may have.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cgverify.runs.execute.worker"])
    process = context.Process(target=_command_line, args=(arguments, limit))
    process.start()
    return process


def _command_line(arguments: tuple[str, ...], limit: int | None) -> None:
    import resource

    output = Path("output.txt").open("a")  # noqa: SIM115  for the life of the process
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    from cgverify.cli.app import app

    sys.argv = ["cgverify", *arguments]
    app()
