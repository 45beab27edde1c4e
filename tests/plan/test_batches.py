"""The order of batches, their memory, and the estimated time of a plan on many workers."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from command_line import ROOT
from sweeping import SMALL

from cgverify.checkpoint.names import parameters
from cgverify.plan.batches import CellBatch
from cgverify.plan.cost.of_plan import memory, seconds
from cgverify.plan.yaml_plan import parse_plan
from cgverify.runs.execute.batch_queue import BatchQueue, longest_first
from cgverify.runs.prepare import outline
from cgverify.runs.request import ExecutionOptions, sweep_of


def outlined(*models: str, **more: Any) -> list[CellBatch]:
    described = {**SMALL, "models": [{"model": model, "weights": "random"} for model in models], **more}
    return outline(sweep_of(parse_plan(described), "plan"), ExecutionOptions())


def test_longest_views_go_first_and_stay_together() -> None:
    batches = longest_first(outlined("codegen-nano", "codegen-350M"))
    views = list(dict.fromkeys(batch.in_view for batch in batches))
    times = [sum(seconds(batch) for batch in batches if batch.in_view == view) for view in views]
    assert times == sorted(times, reverse=True)
    assert len(set(times)) > 2
    assert [batch.in_view for batch in batches] == sorted((batch.in_view for batch in batches), key=views.index)


def test_worker_continues_with_its_open_checkpoint() -> None:
    first, *rest = outlined("codegen-nano", "codegen-350M", dtypes="float32")
    queue = BatchQueue(rest[::-1])
    assert queue.take(None, ()).checkpoint.name == "codegen-350M"
    assert queue.take(first.in_view, ()).checkpoint.name == "codegen-nano"


def test_memory_grows_with_the_weights_in_view() -> None:
    small, large = (max(map(memory, outlined(model))) for model in ("codegen-nano", "codegen-2B"))
    assert small < 0.8e9 < 1.5e9 < large


@pytest.mark.parametrize("workers", [1, 2, 100])
def test_estimated_time_has_its_least_and_greatest_bound(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    tool = importlib.import_module("plan_cluster")
    batches = outlined("codegen-350M", "codegen-2B", layers="all")
    each = [seconds(batch) for batch in batches]
    makespan = tool.schedule(batches, workers).makespan
    least = max(max(each), sum(each) / workers)
    assert least < makespan
    assert makespan < least + max(each) + sum(
        tool.START + 4 * parameters(checkpoint) / tool.HASHING
        for checkpoint in {batch.checkpoint.name: batch.checkpoint for batch in batches}.values()
    )
