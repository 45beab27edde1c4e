"""From tensors to figures and a verdict. Pure functions; no model in sight.

Two questions are asked of each tap. Does it lie within its stage's bound: r = max |tap − o| / B <= 1? And how far is it
from the reference's own tap, in bits, in units in the last place, absolutely?

With a tap [1, 2.5], an expected value [1, 2] and the bound [0.1, 0.25], r is 0.5 / 0.25 = 2, at element 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cgverify.common.records import Verdict
from cgverify.observe.bits import agree, same_tensor, ulp_distance
from cgverify.oracle.arithmetic import Expected

ULP_LIMIT = 4
"""A tap is `ulp` if no element is farther than this from the reference."""


@dataclass(frozen=True)
class Worst:
    """The greatest figure, and the flat index of the element that has it."""

    value: float
    index: int


@dataclass(frozen=True)
class Difference:
    """Candidate against reference, directly."""

    bitwise: bool
    max_abs: float
    """Infinite where one of the two is finite and the other is not."""
    max_ulp: float
    index: int
    """Of the element that is farthest in absolute terms."""


def assess(tap: torch.Tensor, expected: Expected) -> tuple[Worst, float]:
    """r = max |tap − o| / B and max |tap − o| over all elements; see `errors` and `worst_ratio`."""
    error = errors(tap, expected)
    return worst_ratio(error, expected), float(_largest(error))


def errors(tap: torch.Tensor, expected: Expected) -> torch.Tensor:
    """|tap − o| of every element, flat, in float64.

    NaN agrees with NaN and an infinity with the same infinity; a tap may be infinite where |o| + B exceeds its dtype's
    largest finite value. The error is infinite where only one of the two is finite.
    """
    value, bound = expected.value.reshape(-1), expected.bound.reshape(-1)
    wide = tap.reshape(-1).to(torch.float64)
    error = (wide - value).abs_()
    if not _largest(error).isfinite():  # the rare case is kept apart: it costs as much again
        error = torch.where(agree(wide, value), 0.0, error)
        if expected.dtype.is_floating_point:
            may_overflow = value.abs() + bound > torch.finfo(expected.dtype).max
            error = torch.where(wide.isinf() & may_overflow & (wide.sign() == value.sign()), 0.0, error)
        error = torch.where(error.isnan(), torch.inf, error)
    return error


def worst_ratio(error: torch.Tensor, expected: Expected) -> Worst:
    """r = max error / B: 0 where there is no error, infinite where there is one though B = 0."""
    ratio = (error / expected.bound.reshape(-1)).nan_to_num_(nan=0.0, posinf=torch.inf)  # 0/0 where both are exact
    ratio = torch.where(error.isinf(), torch.inf, ratio) if _largest(error).isinf() else ratio
    return _worst(ratio)


def difference(candidate: torch.Tensor, reference: torch.Tensor, visible: torch.Tensor | None = None) -> Difference:
    """Compare two tensors of one shape and dtype, element by element.

    Args:
        visible: boolean, broadcastable to their shape; elements that are False are left out of the distances, and
            only `bitwise` speaks of them.
    """
    if same_tensor(candidate, reference):
        return Difference(bitwise=True, max_abs=0.0, max_ulp=0.0, index=0)
    if visible is not None:
        hidden = ~visible.expand(candidate.shape)
        candidate, reference = candidate.masked_fill(hidden, 0), reference.masked_fill(hidden, 0)
    candidate, reference = candidate.reshape(-1), reference.reshape(-1)
    absolute = (candidate.to(torch.float64) - reference.to(torch.float64)).abs_()
    absolute = torch.where(agree(candidate, reference), 0.0, absolute)
    farthest = _worst(torch.where(absolute.isnan(), torch.inf, absolute))
    return Difference(
        bitwise=False,
        max_abs=farthest.value,
        max_ulp=_worst(ulp_distance(candidate, reference)).value,
        index=farthest.index,
    )


def verdict(r: float | None, against_reference: Difference | None) -> Verdict:
    """The strongest verdict that is true of a tap whose shape and dtype are right.

    Args:
        r: the stage's ratio; None if the stage could not be computed, which leaves nothing but equality to go by.
        against_reference: None where the reference has no such tensor.
    """
    if against_reference is not None and against_reference.bitwise:
        return Verdict.BITWISE
    if r is None or not r <= 1 or (against_reference is not None and against_reference.max_abs == float("inf")):
        return Verdict.DIVERGED
    if against_reference is not None and against_reference.max_ulp <= ULP_LIMIT:
        return Verdict.ULP
    return Verdict.BOUNDED


def _worst(figures: torch.Tensor) -> Worst:
    if figures.numel() == 0:
        return Worst(0.0, 0)
    value, index = figures.max(0)
    return Worst(float(value), int(index))


def _largest(figures: torch.Tensor) -> torch.Tensor:
    return figures.max() if figures.numel() else figures.new_zeros(())
