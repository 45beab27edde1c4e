"""Leading bits that can be trusted: worked numbers, and the head that is worst."""

from __future__ import annotations

import math

import pytest
import torch
from verifying import findings, verify

from cgverify.verification.metrics import TrustedBits, leading_bits


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
def test_worked_numbers(error: float, greatest: float, bits: float) -> None:
    assert leading_bits(error, greatest) == pytest.approx(bits)


def test_a_small_head_is_measured_by_itself_across_blocks_of_columns() -> None:
    bits = TrustedBits(heads=2)
    bits.add(torch.tensor([0.0, 0.25]).double(), torch.tensor([8.0, 4.0]).double(), torch.tensor([0, 0]))
    bits.add(torch.tensor([0.25]).double(), torch.tensor([0.5]).double(), torch.tensor([1]))
    assert bits.of_tap == 5
    assert bits.worst_head == (1, 1.0)


def test_the_head_that_a_fault_hits_has_the_fewest_bits() -> None:
    """One query of head 1 is left unrotated; in float32 all other heads keep nearly all of their 24 bits."""
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


def test_masked_scores_neither_lend_bits_nor_take_them() -> None:
    """The lowest value of a mask, 3e38, is no measure of the scores beside it."""
    (scores,) = (f for f in findings(verify(components=["attn"], cases=["stress"])) if f.tap == "hook_attn_scores")
    assert scores.bits is not None
    assert 18 < scores.bits < 30
    assert scores.candidate_error is not None
    assert scores.reference_error is not None
    assert max(scores.candidate_error, scores.reference_error) < 1e-3
