"""How many leading bits of a tap can be trusted: −log2(greatest error against the oracle / greatest absolute value).

A tap [1, 2.5] that should be [1, 2] has an error of 0.5 and a greatest value of 2: two bits. An exact tap has
infinitely many, and a tap whose error is as large as its values has none. Each head of a tap is measured on its
own, because a head with small values may be wrong in every bit while the tap as a whole looks accurate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch


@dataclass
class TrustedBits:
    """The greatest error and the greatest absolute value of each head, collected from parts of a tap."""

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
        self.errors.scatter_reduce_(0, head, error.cpu(), "amax")
        self.greatest.scatter_reduce_(0, head, value.cpu(), "amax")

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
