"""From tensors to figures and a verdict: pure functions that know no model.

Each tap is measured twice. Is it within its stage's bound: r = max |tap − o| / B <= 1? And how far is it from the
reference's own tap, in bits, in units in the last place and absolutely?

A tap [1, 2.5] with the expected value [1, 2] and the bound [0.1, 0.25] has r = 0.5 / 0.25 = 2, at element 1. Its
error of 0.5 for a greatest value of 2 leaves −log2(0.5 / 2) = 2 trusted bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from cgverify.common.records import Verdict
from cgverify.observe.bits import equal_values, same_tensor, ulp_distance
from cgverify.oracle.arithmetic import Expected

ULP_LIMIT = 4
"""The greatest distance from the reference, in units in the last place, of a tap whose verdict is `ulp`."""


@dataclass(frozen=True)
class Worst:
    """The greatest figure of a tensor, and the flat index of the element that has it."""

    value: float
    index: int


@dataclass(frozen=True)
class Difference:
    """The distance between the candidate's tap and the reference's."""

    bitwise: bool
    """Whether all bits are the same; two NaNs count as equal."""
    max_abs: float
    """Infinite if only one of two elements is finite."""
    max_ulp: float
    index: int
    """The flat index of the element with the greatest absolute difference."""


def assess(tap: torch.Tensor, expected: Expected) -> tuple[Worst, float]:
    """Return r = max |tap − o| / B and max |tap − o| over all elements; see `errors` and `worst_ratio`."""
    error = errors(tap, expected)
    return worst_ratio(error, expected), float(_largest(error))


def errors(tap: torch.Tensor, expected: Expected) -> torch.Tensor:
    """Return |tap − o| of every element, flat, in float64.

    NaN agrees with NaN, and an infinity with the same infinity. A tap may also be infinite where |o| + B exceeds the
    largest finite value of its dtype. Otherwise the error is infinite if only one of the two is finite.
    """
    value, bound = expected.value.reshape(-1), expected.bound.reshape(-1)
    wide = tap.reshape(-1).to(torch.float64)
    error = (wide - value).abs_()
    if not _largest(error).isfinite():  # only in this rare case, since it doubles the cost
        error = torch.where(equal_values(wide, value), 0.0, error)
        if expected.dtype.is_floating_point:
            may_overflow = value.abs() + bound > torch.finfo(expected.dtype).max
            error = torch.where(wide.isinf() & may_overflow & (wide.sign() == value.sign()), 0.0, error)
        error = torch.where(error.isnan(), torch.inf, error)
    return error


def worst_ratio(error: torch.Tensor, expected: Expected) -> Worst:
    """Return r = max error / B: 0 without any error, infinite for an error where B is 0."""
    ratio = (error / expected.bound.reshape(-1)).nan_to_num_(nan=0.0, posinf=torch.inf)  # 0/0 if both are exact
    ratio = torch.where(error.isinf(), torch.inf, ratio) if _largest(error).isinf() else ratio
    return _worst(ratio)


def difference(candidate: torch.Tensor, reference: torch.Tensor, visible: torch.Tensor | None = None) -> Difference:
    """Compare two tensors of one shape and dtype, element by element.

    Args:
        visible: boolean, broadcastable to their shape. Elements that are False are left out of the distances, but not
            of `bitwise`.
    """
    if same_tensor(candidate, reference):
        return Difference(bitwise=True, max_abs=0.0, max_ulp=0.0, index=0)
    if visible is not None:
        hidden = ~visible.expand(candidate.shape)
        candidate, reference = candidate.masked_fill(hidden, 0), reference.masked_fill(hidden, 0)
    candidate, reference = candidate.reshape(-1), reference.reshape(-1)
    absolute = (candidate.to(torch.float64) - reference.to(torch.float64)).abs_()
    absolute = torch.where(equal_values(candidate, reference), 0.0, absolute)
    farthest = _worst(torch.where(absolute.isnan(), torch.inf, absolute))
    max_ulp = _worst(ulp_distance(candidate, reference)).value
    return Difference(bitwise=False, max_abs=farthest.value, max_ulp=max_ulp, index=farthest.index)


def verdict(r: float | None, against_reference: Difference | None) -> Verdict:
    """Return the strongest verdict that is true of a tap whose shape and dtype are right.

    Args:
        r: the stage's ratio; None if the stage could not be computed, so that only equality with the reference counts.
        against_reference: None if the reference has no such tensor.
    """
    if against_reference is not None and against_reference.bitwise:
        return Verdict.BITWISE
    if r is None or not r <= 1 or (against_reference is not None and against_reference.max_abs == math.inf):
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


@dataclass
class TrustedBits:
    """How many leading bits of a tap can be trusted: −log2(greatest error / greatest absolute value).

    An exact tap has infinitely many, and a tap whose error is as large as its values has none. Each head is measured on
    its own, because a head with small values may be wrong in every bit while the tap as a whole looks accurate. Errors
    and values are collected from parts of a tap.
    """

    heads: int
    """1 for a tap without a head axis."""
    errors: torch.Tensor = field(init=False)
    """Float64 `[heads]`."""
    greatest: torch.Tensor = field(init=False)
    """Float64 `[heads]`."""

    def __post_init__(self) -> None:
        self.errors = torch.zeros(self.heads, dtype=torch.float64)
        self.greatest = torch.zeros(self.heads, dtype=torch.float64)

    def add(self, error: torch.Tensor, value: torch.Tensor, head: torch.Tensor) -> None:
        """Add some columns of a tap.

        Args:
            error: the greatest absolute error of each column, float64 `[columns]`.
            value: the greatest absolute value of each column, float64 `[columns]`.
            head: the head that each column belongs to, int64 `[columns]`.
        """
        self.errors.scatter_reduce_(0, head, error, "amax")
        self.greatest.scatter_reduce_(0, head, value, "amax")

    @property
    def of_tap(self) -> float:
        """The trusted bits of the whole tap."""
        return leading_bits(float(self.errors.max()), float(self.greatest.max()))

    @property
    def by_head(self) -> tuple[float, ...]:
        """The trusted bits of each head."""
        return tuple(leading_bits(e, v) for e, v in zip(self.errors.tolist(), self.greatest.tolist(), strict=True))

    @property
    def worst_head(self) -> tuple[int, float] | None:
        """The head with the fewest bits (the first among equals) and its bits; None for a tap without heads."""
        if self.heads == 1:
            return None
        return min(enumerate(self.by_head), key=lambda each: each[1])


def leading_bits(error: float, greatest: float) -> float:
    """Return −log2(error / greatest), at least 0; infinity if there is no error."""
    if error == 0:
        return math.inf
    if not math.isfinite(error) or error >= greatest:
        return 0.0
    return math.log2(greatest) - math.log2(error)
