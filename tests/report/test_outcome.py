"""What a run came to: exit codes, failures told once, hooks that never fired."""

from __future__ import annotations

import pytest

from cgverify.records import Cell, CellResult, Checkpoint, Finding, Run, Verdict
from cgverify.report.frames import findings_frame, in_plan_order, summary_frame
from cgverify.report.outcome import exit_code, failures, silent_hooks

RUN = Run(
    created="",
    command="all-components",
    model="m",
    weights_origin="random",
    weights_digest="d",
    settings={},
    environment={},
    checkpoints=(
        Checkpoint(
            name="m",
            asked="./my model",
            weights="auto",
            origin="random",
            digest="d",
            n_layers=4,
            rotary_dim=8,
            n_positions=64,
            n_embd=64,
            vocab_size=101,
        ),
    ),
)


def result(*verdicts: Verdict, layer: int = 0, kind: str = "attn", **fields: object) -> CellResult:
    cell = Cell(
        **{
            "model": "m",
            "weights": "d",
            "layer": layer,
            "kind": kind,
            "candidate": "c",
            "dtype": "float32",
            "device": "cpu",
            "rotary_dim": 8,
            "case": "default",
            "seed": 0,
            "batch_size": 2,
            "seq_len": 8,
        }
        | fields
    )
    tap = "attn.hook_z" if kind == "block" else "hook_z"
    findings = tuple(
        Finding(step="forward", tap=tap, stage="mix", verdict=v, r=layer + 1.5, message="mix is off") for v in verdicts
    )
    return CellResult(cell=cell, findings=findings, seconds=1.0)


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
def test_exit_codes_in_their_order(verdicts: list[Verdict], code: int) -> None:
    assert exit_code([result(*verdicts)] if verdicts else []) == code


def test_a_fault_is_told_once_where_it_tells_most() -> None:
    results = [result(Verdict.DIVERGED, layer=layer, kind=kind) for layer in range(3) for kind in ("attn", "block")]
    (failure,) = failures(results)
    assert failure.cell.component == "blocks.2.attn"
    assert failure.cells == 6
    assert failure.sentence == "blocks.2.attn, c in float32, case default: mix is off (and in 5 more cells)."


def test_the_command_that_repeats_says_only_what_is_not_default() -> None:
    (failure,) = failures([result(Verdict.DIVERGED, dtype="float16", seed=4, candidate="cgverify")])
    assert failure.command(RUN) == (
        "cgverify all-components --model './my model' --component blocks.0.attn --case default --dtype float16 --seed 4"
    )


def test_tables_stand_in_the_plans_order_whatever_finished_first() -> None:
    results = [result(Verdict.BITWISE, layer=layer) for layer in range(4)]
    plan = [one.cell for one in results]
    assert in_plan_order(reversed(results), plan) == results
    assert in_plan_order(results[2:], plan) == results[2:]


def test_the_summary_counts_and_points_at_the_worst() -> None:
    results = [result(Verdict.BITWISE, Verdict.DIVERGED, layer=1), result(Verdict.UNSUPPORTED, layer=2)]
    summary = summary_frame(findings_frame(results)).set_index("component")
    assert summary.loc["blocks.1.attn", ["taps", "bitwise", "diverged"]].tolist() == [2, 1, 1]
    assert summary.loc["blocks.1.attn", "worst_verdict"] == "diverged"
    assert summary.loc["blocks.1.attn", "where"] == "blocks.1.attn, hook_z"
    assert summary.loc["blocks.2.attn", "taps"] == 0


def test_hooks_that_never_fired_are_listed_by_candidate() -> None:
    first = result(Verdict.BITWISE).model_copy(update={"silent_hooks": ("hook_result",)})
    block = result(Verdict.BITWISE, kind="block").model_copy(update={"silent_hooks": ("attn.hook_result",)})
    assert silent_hooks([first, block, result(Verdict.BITWISE)]) == {"c": ["attn.hook_result"]}
