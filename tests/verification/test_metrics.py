"""Figures and verdicts: worked examples, non-finite values, and bits that can be trusted."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from verifying import findings, verify

from cgverify.common.records import Verdict
from cgverify.oracle.arithmetic import Expected
from cgverify.verification.metrics import (
    Difference,
    TrustedBits,
    Worst,
    assess,
    difference,
    leading_bits,
    verdict,
)

INF, NAN = math.inf, math.nan


def must(value: list[float], bound: list[float], dtype: torch.dtype = torch.float32) -> Expected:
    return Expected(torch.tensor(value).double(), torch.tensor(bound).double(), dtype)


def test_assess_worked_example() -> None:
    worst, error = assess(torch.tensor([1.0, 2.5]), must([1.0, 2.0], [0.1, 0.25]))
    assert worst == Worst(value=2.0, index=1)
    assert error == 0.5


@pytest.mark.parametrize(
    ("tap", "value", "bound", "r"),
    [
        (1.0, 1.0, 0.0, 0.0),
        (1.0, 1.5, 0.0, INF),
        (NAN, NAN, 1.0, 0.0),
        (NAN, 1.0, 1.0, INF),
        (1.0, NAN, 1.0, INF),
        (INF, INF, 0.0, 0.0),
        (INF, -INF, 1.0, INF),
        (INF, 1.0, 1.0, INF),
        (1.0, INF, 1.0, INF),
        (INF, 3.4e38, 1e37, 0.0),
        (-INF, 3.4e38, 1e37, INF),
        (INF, 3.3e38, 1e36, INF),
    ],
)
def test_assess_of_non_finite_values(tap: float, value: float, bound: float, r: float) -> None:
    assert assess(torch.tensor([tap]), must([value], [bound]))[0].value == r


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20), st.floats(1e-3, 10))
def test_r_is_the_greatest_ratio(values: list[float], bound: float) -> None:
    worst, _ = assess(torch.tensor(values), must([0.0] * len(values), [bound] * len(values)))
    assert worst.value == pytest.approx(max(abs(value) for value in values) / bound)


def test_difference_leaves_out_hidden_elements() -> None:
    candidate, reference = torch.tensor([[1.0, 9.0], [3.0, 4.5]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    seen = difference(candidate, reference)
    assert (seen.bitwise, seen.max_abs, seen.index) == (False, 7.0, 1)
    seen = difference(candidate, reference, visible=torch.tensor([[True, False], [True, True]]))
    assert (seen.max_abs, seen.index) == (0.5, 3)


def test_difference_from_nan_is_infinite() -> None:
    assert difference(torch.tensor([NAN, 1.0]), torch.tensor([1.0, 1.0])).max_abs == INF
    assert difference(torch.tensor([INF, NAN]), torch.tensor([INF, NAN])).bitwise


SAME = Difference(bitwise=True, max_abs=0.0, max_ulp=0.0, index=0)


def differing(**figures: Any) -> Difference:
    return Difference(**{"bitwise": False, "max_abs": 1e-6, "max_ulp": 4.0, "index": 0} | figures)


@pytest.mark.parametrize(
    ("r", "against", "said"),
    [
        (0.5, SAME, Verdict.BITWISE),
        (2.0, SAME, Verdict.BITWISE),
        (None, SAME, Verdict.BITWISE),
        (0.5, differing(), Verdict.ULP),
        (1.0, differing(max_ulp=5.0), Verdict.BOUNDED),
        (0.5, None, Verdict.BOUNDED),
        (1.001, differing(), Verdict.DIVERGED),
        (NAN, differing(), Verdict.DIVERGED),
        (None, differing(), Verdict.DIVERGED),
        (0.5, differing(max_abs=INF), Verdict.DIVERGED),
    ],
)
def test_verdict_is_the_strongest_true_one(r: float | None, against: Difference | None, said: Verdict) -> None:
    assert verdict(r, against) is said


# --- trusted bits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "greatest", "bits"),
    [
        (0.5, 2.0, 2.0),
        (0.0, 0.0, math.inf),
        (3.0, 2.0, 0.0),
        (math.inf, 2.0, 0.0),
        (1e-300, 1e300, 600 * math.log2(10)),
    ],
)
def test_leading_bits_worked_examples(error: float, greatest: float, bits: float) -> None:
    assert leading_bits(error, greatest) == pytest.approx(bits)


def test_trusted_bits_measure_each_head_across_blocks() -> None:
    bits = TrustedBits(heads=2)
    bits.add(torch.tensor([0.0, 0.25]).double(), torch.tensor([8.0, 4.0]).double(), torch.tensor([0, 0]))
    bits.add(torch.tensor([0.25]).double(), torch.tensor([0.5]).double(), torch.tensor([1]))
    assert bits.of_tap == 5
    assert bits.worst_head == (1, 1.0)


def test_faulty_head_has_the_fewest_bits() -> None:
    """One query of head 1 is not rotated. In float32 all other heads keep nearly all of their 24 bits."""
    results = verify(candidates=["faults:OneHeadUnrotated"], components=["attn"], cases=["stress"])
    by_tap = {finding.tap: finding for finding in findings(results)}
    rotated = by_tap["hook_rot_q"]
    assert rotated.worst_head == 1
    assert rotated.head_bits is not None
    assert rotated.head_bits < 4
    projected = by_tap["hook_q"]
    assert projected.bits is not None
    assert projected.head_bits is not None
    assert 16 < projected.head_bits <= projected.bits
    assert by_tap["hook_out"].worst_head is None


def test_hidden_scores_do_not_count_in_trusted_bits() -> None:
    """The lowest value of a mask, 3e38, must not count as the greatest score."""
    (scores,) = (f for f in findings(verify(components=["attn"], cases=["stress"])) if f.tap == "hook_attn_scores")
    assert scores.bits is not None
    assert 18 < scores.bits < 30
    assert scores.candidate_error is not None
    assert scores.reference_error is not None
    assert max(scores.candidate_error, scores.reference_error) < 1e-3
