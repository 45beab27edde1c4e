"""The outcome of a run: exit codes, failures, hooks that never fired."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from made_records import a_checkpoint, a_finding, a_result, a_run

from cgverify.common.records import CellResult, Verdict
from cgverify.report.formats import render_run
from cgverify.report.frames import in_plan_order, summary_frame
from cgverify.report.outcome import exit_code, failures, silent_hooks, times_line

RUN = a_run(checkpoints=[a_checkpoint(asked="./my model")])


def result(*verdicts: Verdict, layer: int = 0, kind: str = "attn", **cell: object) -> CellResult:
    tap = "attn.hook_z" if kind == "block" else "hook_z"
    findings = [a_finding(tap, verdict=verdict, r=layer + 1.5, message="mix is off") for verdict in verdicts]
    return a_result(*findings, layer=layer, kind=kind, **cell)


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ([Verdict.BITWISE, Verdict.ULP, Verdict.BOUNDED], 0),
        ([Verdict.BITWISE, Verdict.UNSUPPORTED], 0),
        ([Verdict.BITWISE, Verdict.DIVERGED], 1),
        ([Verdict.MISSING], 1),
        ([Verdict.BITWISE, Verdict.ERROR], 3),
        ([Verdict.DIVERGED, Verdict.ERROR], 1),
        ([Verdict.UNSUPPORTED], 5),
        ([Verdict.ERROR, Verdict.UNSUPPORTED], 3),
        ([], 5),
    ],
)
def test_exit_code_follows_from_the_verdicts(verdicts: list[Verdict], code: int) -> None:
    assert exit_code([result(*verdicts)] if verdicts else []) == code


def test_fault_of_many_cells_is_one_failure_at_the_worst() -> None:
    results = [result(Verdict.DIVERGED, layer=layer, kind=kind) for layer in range(3) for kind in ("attn", "block")]
    (failure,) = failures(results)
    assert failure.cell.component == "blocks.2.attn"
    assert failure.cells == 6
    assert failure.sentence == "blocks.2.attn, c in float32, case default: mix is off (and in 5 more cells)."


def test_later_failures_of_a_forward_are_not_repeated() -> None:
    cell = result(Verdict.DIVERGED)
    behind = a_finding("hook_out", "output", Verdict.DIVERGED, message="output is off")
    later = behind.model_copy(update={"step": "token 1"})
    broken = cell.model_copy(update={"findings": (*cell.findings, behind, later), "blame": "mix breaks first"})
    mix, output = failures([broken])
    assert mix.sentence == "blocks.0.attn, c in float32, case default: mix breaks first."
    assert output.sentence == "blocks.0.attn, c in float32, case default token 1: output is off."


def test_equal_missing_hooks_of_many_cells_are_one_failure() -> None:
    missing = [result(Verdict.MISSING, layer=layer, kind=kind) for layer in range(2) for kind in ("attn", "block")]
    (failure,) = failures([one.model_copy(update={"blame": "hook_z never fired"}) for one in missing])
    assert failure.sentence.endswith("hook_z never fired (and in 3 more cells).")


def test_times_compare_the_oracle_with_the_forwards() -> None:
    cell = result(Verdict.BITWISE).model_copy(
        update={"candidate_seconds": 1.0, "reference_seconds": 0.5, "judging_seconds": 0.75}
    )
    assert times_line([cell, cell]) == (
        "forwards: candidate 2.00 s, reference 1.00 s; oracle and judge 1.50 s, 0.5 times as long"
    )


def test_blame_is_in_the_summary_and_in_json() -> None:
    held, broke = result(Verdict.BITWISE, layer=0), result(Verdict.DIVERGED, layer=1)
    results = [held, broke.model_copy(update={"blame": "mix breaks first"})]
    summary = summary_frame(results).set_index("component")
    assert summary.loc["blocks.1.attn", "blame"] == "mix breaks first"
    assert pd.isna(summary.loc["blocks.0.attn", "blame"])
    (failed,) = json.loads(render_run("json", RUN, results))["failed"]
    assert (failed["component"], failed["blame"]) == ("blocks.1.attn", "mix breaks first")


def test_command_of_a_failure_leaves_out_defaults() -> None:
    (failure,) = failures([result(Verdict.DIVERGED, dtype="float16", seed=4, candidate="cgverify")])
    assert failure.command(RUN) == (
        "cgverify all-components --model './my model' --component blocks.0.attn --case default --dtype float16 --seed 4"
    )


def test_results_are_in_plan_order_however_they_finished() -> None:
    results = [result(Verdict.BITWISE, layer=layer) for layer in range(4)]
    plan = [one.cell for one in results]
    assert in_plan_order(reversed(results), plan) == results
    assert in_plan_order(results[2:], plan) == results[2:]


def test_summary_counts_verdicts_and_locates_the_worst() -> None:
    results = [result(Verdict.BITWISE, Verdict.DIVERGED, layer=1), result(Verdict.UNSUPPORTED, layer=2)]
    summary = summary_frame(results).set_index("component")
    assert summary.loc["blocks.1.attn", ["taps", "bitwise", "diverged"]].tolist() == [2, 1, 1]
    assert summary.loc["blocks.1.attn", "worst_verdict"] == "diverged"
    assert summary.loc["blocks.1.attn", "where"] == "blocks.1.attn, hook_z"
    assert summary.loc["blocks.2.attn", "taps"] == 0


def test_silent_hooks_are_listed_by_candidate() -> None:
    first = result(Verdict.BITWISE).model_copy(update={"silent_hooks": ("hook_result",)})
    block = result(Verdict.BITWISE, kind="block").model_copy(update={"silent_hooks": ("attn.hook_result",)})
    assert silent_hooks([first, block, result(Verdict.BITWISE)]) == {"c": ["attn.hook_result"]}
