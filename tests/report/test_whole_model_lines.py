"""The lines about the case `model`."""

from __future__ import annotations

from typing import Any

from made_records import a_finding, a_result

from cgverify.common.records import CellResult, Finding, Verdict
from cgverify.plan.cases import AS_CARRIED, CARRIED, GENERATION, TOP_1
from cgverify.report.whole_model import whole_model_lines


def result(kind: str, layer: int | None, *findings: Finding, case: str = "model") -> CellResult:
    return a_result(*findings, kind=kind, layer=layer, case=case, candidate="mine", prompt="p")


def found(stage: str, verdict: Verdict, step: str = "prompt", **figures: Any) -> Finding:
    return a_finding("returned", stage, verdict, step=step, **figures)


TOP_1_ONLY = result("unembed", None, found(TOP_1, Verdict.BOUNDED, message="top-1 agrees at 8 of 9 positions"))


def test_line_has_the_first_the_middle_and_the_last_layer() -> None:
    layers = [
        result("block", layer, found(CARRIED, Verdict.BOUNDED, max_abs=10.0**layer, candidate_error=1.0))
        for layer in range(5)
    ]
    logits = result("unembed", None, found(CARRIED, Verdict.ULP, max_abs=7.0), *TOP_1_ONLY.findings)
    whole = result(
        "model",
        None,
        found(AS_CARRIED, Verdict.BITWISE, step="prompt blocks.0"),
        found(AS_CARRIED, Verdict.ULP, step="prompt blocks.1"),
        found(GENERATION, Verdict.BITWISE, message="8 of 8 generated tokens alike"),
    )
    assert whole_model_lines([*layers, logits, whole]) == [
        "whole model · m · mine · float32 · cpu · rotary_dim 8: max |Δ| from the reference 1 after layer 0, 1e+02 "
        "after layer 2, 1e+04 after layer 4, 7 in the logits; top-1 agrees at 8 of 9 positions; 8 of 8 generated "
        "tokens alike; booted whole it differs from blocks.1 on"
    ]


def test_line_of_a_bitwise_equal_model_has_float64_errors() -> None:
    layer = result("block", 3, found(CARRIED, Verdict.BITWISE, max_abs=0.0, candidate_error=0.5))
    whole = result("model", None, found(AS_CARRIED, Verdict.BITWISE))
    (line,) = whole_model_lines([layer, whole])
    assert line.endswith(
        "every layer bitwise equal to the reference (from float64: 0.5 after layer 3); booted whole it gives the same "
        "bits"
    )


def test_other_cases_have_no_line() -> None:
    assert whole_model_lines([result("unembed", None, *TOP_1_ONLY.findings, case="text")]) == []
