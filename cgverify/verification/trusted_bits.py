"""How many leading bits of a tap can be trusted: −log2(greatest error against the oracle / greatest absolute value).

A tap [1, 2.5] where [1, 2] is expected has an error of 0.5 beside a greatest value of 2: two bits. A tap that is exact
has infinitely many, one whose error is as large as itself has none. Where a tap has heads each is measured by itself,
since a head with small values may be wrong to the last bit while the tap as a whole looks well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch


@dataclass
class Precision:
    """Greatest error and greatest absolute value of each head, put together from parts of a tap."""

    heads: int
    """1 for a tap that has no head axis."""
    errors: torch.Tensor = field(init=False)
    greatest: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.errors = torch.zeros(self.heads, dtype=torch.float64)
        self.greatest = torch.zeros(self.heads, dtype=torch.float64)

    def add(self, error: torch.Tensor, value: torch.Tensor, head: torch.Tensor) -> None:
        """Take in some columns of a tap.

        Args:
            error: absolute, float64, `[columns]`: the greatest of each.
            value: absolute, likewise.
            head: the head that each column belongs to, int64 `[columns]`.
        """
        self.errors.scatter_reduce_(0, head, error.cpu(), "amax")
        self.greatest.scatter_reduce_(0, head, value.cpu(), "amax")

    @property
    def bits(self) -> float:
        """Of the whole tap."""
        return leading_bits(float(self.errors.max()), float(self.greatest.max()))

    @property
    def worst_head(self) -> tuple[int, float] | None:
        """The head with the fewest bits (among equals the first) and how many; None where there are no heads."""
        if self.heads == 1:
            return None
        return min(enumerate(self.by_head), key=lambda each: each[1])

    @property
    def by_head(self) -> tuple[float, ...]:
        """Of each head by itself."""
        return tuple(leading_bits(e, v) for e, v in zip(self.errors.tolist(), self.greatest.tolist(), strict=True))


def leading_bits(error: float, greatest: float) -> float:
    """−log2(error / greatest), at least 0; infinite where there is no error."""
    if error == 0:
        return math.inf
    if not math.isfinite(error) or error >= greatest:
        return 0.0
    return math.log2(greatest) - math.log2(error)
