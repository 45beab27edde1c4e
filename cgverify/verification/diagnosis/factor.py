"""A stage that is computed correctly, except that its result is off by a factor."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from cgverify.oracle.arithmetic import Expected
from cgverify.verification.check import visible
from cgverify.verification.diagnosis.mismatch import Mismatch
from cgverify.verification.diagnosis.scores import other_divisors

FEWEST = 8
"""At least this many elements must agree on one factor."""


def scaled(mismatch: Mismatch) -> Iterator[str]:
    """Hypothesis: the tap is c·o, with a c that scores are known to be scaled by, or else with a fitted c.

    c is fitted to the elements that the mask does not hide, as Σ t·o / Σ o². The bounds B of the elements leave it
    uncertain by up to Σ B|o| / Σ o².
    """
    value, bound = mismatch.expected.value, mismatch.expected.bound
    tap = mismatch.tap.to(torch.float64)
    seen = visible(mismatch.stage, mismatch.tensors)
    hidden = torch.zeros_like(value, dtype=torch.bool) if seen is None else ~seen.expand(value.shape)
    for name, factor in other_divisors(mismatch).items():
        if mismatch.agrees(_times(mismatch.expected, factor, 0.0, hidden)):
            yield name
    if int(((value != 0) & ~hidden).sum()) < FEWEST:
        return
    square = value.masked_fill(hidden, 0).square().sum()
    factor = float((tap * value).masked_fill(hidden, 0).sum() / square)
    uncertain = float((bound * value.abs()).masked_fill(hidden, 0).sum() / square)
    differs_from_one = math.isfinite(factor) and abs(factor) > uncertain and abs(factor - 1) > 2 * uncertain
    if differs_from_one and mismatch.agrees(_times(mismatch.expected, factor, uncertain, hidden)):
        opposite = abs(factor + 1) <= uncertain
        yield "the sign is reversed" if opposite else f"scaled by {_written(factor, uncertain)}"


def _times(expected: Expected, factor: float, uncertain: float, hidden: torch.Tensor) -> Expected:
    """Return factor · o. Hidden elements may have any value: the mask may be added before or after the factor."""
    value = expected.value * factor
    bound = abs(factor) * expected.bound + uncertain * expected.value.abs()
    greatest = torch.finfo(expected.dtype).max if expected.dtype.is_floating_point else 0.0
    return Expected(value, torch.where(hidden, greatest, bound), expected.dtype)


def _written(factor: float, uncertain: float) -> str:
    """Write two digits of the factor's distance from 1, as far as they are certain: `1.001`, `-0.5`, `5.7`."""
    certain = math.floor(-math.log10(max(uncertain, 1e-15)))
    decimals = min(certain, 1 + math.ceil(-math.log10(abs(factor - 1))))
    return f"{round(factor, max(1, decimals)):g}" if decimals < 5 else f"{factor:.{decimals}f}".rstrip("0")
