"""Cells that were finished in any order are shown in the plan's."""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import Any

import pytest
from made_records import a_finding, a_run

from cgverify.common.records import CellResult, Prompt
from cgverify.plan.cells import CASE_KINDS, Axes, CheckpointShape, cells
from cgverify.runs.order import in_report_order

SUBJECT = CheckpointShape(model="m", weights="d", n_layers=3, rotary_dim=8, n_positions=64)


@pytest.mark.parametrize(
    "axes",
    [
        {"cases": tuple(CASE_KINDS), "seeds": (3, 0)},
        {"dtypes": ("bfloat16", "float32"), "candidates": ("z", "a"), "rotary_dims": (16, "none", 8)},
        {"devices": ("cuda", "cpu"), "layers": (0, 2), "cases": ("decode", "default")},
    ],
)
def test_the_order_is_the_plans_with_the_axes_as_they_were_asked_for(axes: dict[str, Any]) -> None:
    asked = Axes(**axes)
    planned = cells(SUBJECT, asked, Prompt(tokens=tuple(range(9)), origin="nine"))
    finished = [CellResult(cell=cell, findings=(a_finding(),), seconds=0.0) for cell in planned]
    random.Random(0).shuffle(finished)
    shown = [result.cell for result in in_report_order(a_run(settings=asdict(asked)), finished)]
    assert shown == planned


def test_what_no_plan_of_this_version_knows_comes_last() -> None:
    planned = cells(SUBJECT, Axes())
    known = [CellResult(cell=cell, findings=(a_finding(),), seconds=0.0) for cell in planned]
    unknown = known[-1].model_copy(update={"cell": planned[-1].model_copy(update={"kind": "model", "case": "novel"})})
    shown = in_report_order(a_run(), [unknown, *known])
    assert shown == [*known, unknown]
