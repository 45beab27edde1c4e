"""Drift: what is reported about two sides that each carry their own hidden states."""

from __future__ import annotations

import math

import torch

from cgverify.common.records import Verdict
from cgverify.verification import drift


def test_carried_measures_both_sides_and_float64() -> None:
    theirs = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    ours = torch.tensor([[[1.0, 2.0], [3.0, 4.5]]])
    found = drift.carried(ours, theirs, torch.tensor([[[1.0, 2.0], [3.0, 4.25]]], dtype=torch.float64))
    assert (found.max_abs, found.candidate_error, found.reference_error) == (0.5, 0.25, 0.25)
    assert found.verdict is Verdict.BOUNDED
    assert found.bits == math.log2(4.25 / 0.25)
    assert found.at == "position 1"
    assert drift.carried(theirs, theirs, theirs.double()).verdict is Verdict.BITWISE


def test_carried_nan_is_reported_and_does_not_fail() -> None:
    theirs = torch.ones(1, 2, 2)
    ours = theirs.clone()
    ours[0, 1, 0] = math.nan
    found = drift.carried(ours, theirs, theirs.double())
    assert found.verdict is Verdict.BOUNDED
    assert found.max_abs == math.inf
    assert found.candidate_error == math.inf


def test_top_1_reports_a_tie_without_failing() -> None:
    theirs = torch.tensor([[[0.0, 1.0], [1.0, 1.001]]])
    ours = torch.tensor([[[0.0, 1.0], [1.002, 1.001]]])
    found = drift.top_1(ours, theirs)
    assert found.verdict is Verdict.BOUNDED
    assert found.message == (
        "top-1 agrees at 1 of 2 positions; first apart at position 1, where the reference's two best logits are 0.001 "
        "and the sides 0.002 apart"
    )
    assert drift.top_1(theirs, theirs).message == "top-1 agrees at 2 of 2 positions"
    assert drift.top_1(theirs, theirs).verdict is Verdict.BITWISE


def test_generation_counts_tokens_to_the_first_difference() -> None:
    logits = [torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.5])]
    assert drift.generation(logits, logits).message == "2 of 2 generated tokens alike"
    found = drift.generation([logits[0], torch.tensor([1.0, 1.25])], logits)
    assert found.verdict is Verdict.BOUNDED
    assert found.message == (
        "1 of 2 generated tokens alike; the next is 1 for 0, where the reference's two best logits are 0.5 and the "
        "sides 0.75 apart"
    )
