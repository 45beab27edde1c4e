"""The tables of one attention: a row per tap, a row per head, trusted bits."""

from __future__ import annotations

import math

import pytest
from made_records import a_checkpoint, a_run
from verifying import verify

from cgverify.common.records import CellResult
from cgverify.report.numbers import bits
from cgverify.report.render import render
from cgverify.report.run import Tables, by_component, by_head, by_tap, run_report
from cgverify.selftest.seeded.mixing import ValuesOfAnotherHead


@pytest.fixture(scope="module")
def results() -> list[CellResult]:
    fault = ValuesOfAnotherHead
    return verify(candidates=[f"{fault.__module__}:{fault.__name__}"], components=["attn"], cases=["default"])


def shown(results: list[CellResult], *tables: Tables, width: int = 240) -> list[str]:
    checkpoint = a_checkpoint(name="codegen-nano", digest=results[0].cell.weights)
    run = a_run(command="attention", model="codegen-nano", checkpoints=[checkpoint])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        return render("table", run_report(run, results, tables=tables)).splitlines()


def test_row_of_a_tap_names_the_worst_head(results: list[CellResult]) -> None:
    lines = shown(results, by_tap)
    (row,) = [line for line in lines if line.strip().startswith("hook_z ")]
    cells = row.split()
    assert cells[1:3] == ["mix", "diverged"]
    assert cells[-1] == "2"
    (row,) = [line for line in lines if line.strip().startswith("hook_in ")]
    assert "exact" in row
    assert not any("…" in line for line in shown(results, by_tap, width=80))


def test_row_of_each_head_shows_the_wrong_one(results: list[CellResult]) -> None:
    (finding,) = [finding for finding in results[0].findings if finding.tap == "hook_z"]
    assert len(finding.bits_by_head) == len(finding.errors_by_head) == 8
    assert min(finding.bits_by_head) == finding.bits_by_head[2] < 3
    assert all(bits > 20 for head, bits in enumerate(finding.bits_by_head) if head != 2)
    lines = shown(results, by_component, by_head)
    assert sum(line[:1] == " " and line[1:2].isdigit() for line in lines) == 8


def test_component_table_has_bits(results: list[CellResult]) -> None:
    (header,) = [line for line in shown(results, by_component) if "verdict" in line]
    assert "bits" in header


@pytest.mark.parametrize(("value", "written"), [(math.inf, "exact"), (21.27, "21.3"), (None, "–"), (math.nan, "–")])
def test_bits_are_formatted_with_one_digit(value: float | None, written: str) -> None:
    assert bits(value) == written
