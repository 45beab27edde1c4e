"""What Python code calls to verify."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgverify.config import load, parse
from cgverify.errors import UnknownNameError
from cgverify.evidence import KEEP
from cgverify.report.frames import write_csv
from cgverify.result import Result
from cgverify.runner import Campaign, Means, prepare, require_cells, sweep_of
from cgverify.store import new_folder


def sweep(
    config: str | os.PathLike[str] | Mapping[str, Any],
    output: str | os.PathLike[str] | None = None,
    *,
    threads: int | None = None,
    jobs: int = 1,
    keep_tensors: str = "failed",
) -> Result:
    """Carry out a plan, as `cgverify sweep` does.

    Args:
        config: the path of a plan in YAML, or what such a file would say.
        output: a new folder for the run; `reports/PLAN-TIME` by default.
        threads: of torch in each process, which are set for this process too; None leaves them.
        jobs: processes that share the work. With more than one, call this under `if __name__ == "__main__":`.
        keep_tensors: of which findings tensors are kept: `failed`, `all`, `none`.

    Raises:
        ConfigError: a plan that cannot be.
        CgverifyError: see `cgverify.errors`.
    """
    if keep_tensors not in KEEP:
        raise UnknownNameError("keep_tensors", keep_tensors, KEEP)
    if isinstance(config, Mapping):
        described, name = parse(config), "sweep"
    else:
        described, name = load(Path(config)), Path(config).stem
    prepared = prepare(sweep_of(described, name), Means(threads=threads, jobs=jobs, keep_tensors=keep_tensors))
    require_cells(prepared)
    campaign = Campaign.start(prepared, Path(output) if output is not None else new_folder(prepared.run.model))
    try:
        for _ in campaign.carry_out():
            pass
    finally:
        campaign.folder.close()
    write_csv(campaign.folder.path, campaign.ordered)
    return Result(campaign.folder.run, tuple(campaign.ordered), campaign.folder.path, len(prepared.plan))
