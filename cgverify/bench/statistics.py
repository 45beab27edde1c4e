"""The median with an interval that assumes nothing of the distribution.

Of n independent values each lies below the true median with probability 1/2, so the number that do is binomial, and
the k-th smallest and k-th largest enclose the median unless fewer than k values lie on one side of it: with
probability 1 − 2·P(Bin(n, 1/2) < k), whatever the values are distributed like (David and Nagaraja, Order Statistics,
7.1). Five values cannot give 95 %: even the smallest and largest miss the median once in 16.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Median:
    """A median and the interval that holds the true one with at least the confidence asked for."""

    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Of the interval, relative to the median."""
        return (self.high - self.low) / abs(self.value)


@lru_cache
def rank(n: int, confidence: float = CONFIDENCE) -> int:
    """The greatest k such that the k-th smallest and k-th largest of n enclose the median; 0 where none does.

    `rank(6)` is 1, `rank(5)` is 0, `rank(20)` is 6.
    """
    # In whole numbers, of 2**n equally likely outcomes: 2·P(Bin < k + 1) may be at most 1 − confidence.
    most = round((1 - confidence) * 10**9) * (1 << n) // 10**9
    k, ways = 0, 1
    outside = 2 * ways
    while k < n // 2 and outside <= most:
        ways = ways * (n - k) // (k + 1)
        k += 1
        outside += 2 * ways
    return k


FEWEST = next(n for n in range(1, 100) if rank(n))
"""The fewest values that have an interval."""


def median(values: Sequence[float], confidence: float = CONFIDENCE) -> Median:
    """The median of values with its interval.

    Raises:
        ValueError: fewer values than can enclose a median with that confidence.
    """
    k = rank(len(values), confidence)
    if not k:
        raise ValueError(f"{len(values)} values are too few for an interval of confidence {confidence}")
    ordered = sorted(values)
    return Median(statistics.median(ordered), ordered[k - 1], ordered[-k])
