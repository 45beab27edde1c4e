"""Sizes of units: which go first, and what they take on paper."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from conftest import ROOT
from sweeping import SMALL

from cgverify.config import parse
from cgverify.cost import seconds
from cgverify.execute.processes import Queue
from cgverify.execute.size import heaviest_first, memory
from cgverify.execute.work import Unit
from cgverify.runner import Means, outline, sweep_of


def outlined(*models: str, **more: Any) -> list[Unit]:
    described = {**SMALL, "models": [{"model": model, "weights": "random"} for model in models], **more}
    return outline(sweep_of(parse(described), "plan"), Means())


def test_the_heaviest_views_go_first_and_a_view_stays_together() -> None:
    units = heaviest_first(outlined("codegen-nano", "codegen-350M"))
    views = list(dict.fromkeys(unit.in_view for unit in units))
    assert [view[0] for view in views] == ["codegen-350M"] * 3 + ["codegen-nano"] * 3
    assert [view[2] for view in views] == ["embed", 0, 3, 0, 3, "embed"]
    assert [unit.in_view for unit in units] == sorted((unit.in_view for unit in units), key=views.index)


def test_a_worker_goes_on_with_the_checkpoint_that_it_has_open() -> None:
    first, *rest = outlined("codegen-nano", "codegen-350M", dtypes="float32")
    queue = Queue(rest[::-1])
    assert queue.take(None, ()).checkpoint.name == "codegen-350M"
    assert queue.take(first.in_view, ()).checkpoint.name == "codegen-nano"


def test_memory_grows_with_what_is_in_view() -> None:
    small, large = (max(map(memory, outlined(model))) for model in ("codegen-nano", "codegen-2B"))
    assert small < 0.8e9 < 2e9 < large


@pytest.mark.parametrize("workers", [1, 2, 100])
def test_a_plan_on_paper_takes_no_less_than_its_share_and_its_longest_unit(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    tool = importlib.import_module("plan_cluster")
    units = outlined("codegen-350M", "codegen-2B", layers="all")
    told, each = tool.schedule(units, workers), [seconds(unit) for unit in units]
    least = max(max(each), sum(each) / workers)
    assert least < told.makespan
    assert told.makespan < least + max(each) + sum(
        tool.START + 4 * tool.shape(checkpoint).parameters / tool.HASHING
        for checkpoint in {unit.checkpoint.name: unit.checkpoint for unit in units}.values()
    )
