"""The command line of cgverify as a process: a new one, or one forked from a server that has imported torch."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"  # Windows cannot fork
PRELOADED = ["cgverify.runs.session", "cgverify.runs.execute.in_process", "cgverify.report.run"]
Cli = Callable[..., subprocess.CompletedProcess[str]]


def command(*arguments: str) -> Sequence[str]:
    """Return the arguments of a new process, which needs seconds to import torch."""
    return [sys.executable, "-m", "cgverify", *arguments]


def fork(
    *arguments: str,
    cwd: Path | None = None,
    output: Path = Path("output.txt"),
    errors: Path | None = None,
    environment: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> BaseProcess:
    """Start the command line in a process of its own, where torch is already imported.

    Args:
        output: the file to which stdout is appended, and stderr without `errors`.
        environment: what the process has besides the environment of this one.
        limit: the greatest size of a file, in bytes.
    """
    context: Any = multiprocessing.get_context(START)
    if START == "forkserver":
        context.set_forkserver_preload(PRELOADED)
    streams = output.absolute(), (errors or output).absolute()
    variables = {**os.environ, **(environment or {})}
    process: BaseProcess = context.Process(target=_run, args=(arguments, cwd or Path.cwd(), streams, variables, limit))
    process.start()
    return process


def _run(
    arguments: tuple[str, ...], cwd: Path, streams: tuple[Path, Path], variables: dict[str, str], limit: int | None
) -> None:
    gc.freeze()  # as a command does when it has imported torch
    for stream, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    if limit is not None:
        import resource

        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Coverage, if it is measured, writes a file too: once the limit is lifted.
        if "coverage" in sys.modules and (measured := sys.modules["coverage"].Coverage.current()):
            measured.stop()
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    from cgverify.__main__ import main

    sys.argv = ["cgverify", *arguments]
    try:
        main()
    finally:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
