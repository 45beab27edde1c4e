"""Time calls in rounds. Each round runs every call once, and what counts is the ratio of two times in one round.

Drift of the machine affects all calls of a round alike. Each round starts with another call. The clock waits for every
accelerator before it is read. torch's `Timer.timeit` would warm a call up twice just before timing it, and so time it
with its own weights in the cache, which is not the case for a layer inside a model.

**The interval of a median** assumes nothing about the distribution. Each of n independent values is below the true
median with probability 1/2, so the number of values below it is binomial. The k-th smallest and k-th largest enclose
the median unless fewer than k values are on one side of it: with probability 1 − 2·P(Bin(n, 1/2) < k) (David and
Nagaraja, Order Statistics, 7.1). Five values cannot give 95 %: even the smallest and largest miss the median once in
16.
"""

from __future__ import annotations

import statistics
import time
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from cgverify.common.devices import synchronize

CONFIDENCE = 0.95
ROUNDS_GROWTH = 1.25
"""The factor between the numbers of rounds after which the interval is checked.

Each check is one more chance to stop too early. With a check after every round, an interval of 95 % contains the true
ratio in 93.5 % of measurements; with this factor in 94.6 %.
"""
SHORTEST = 0.01
"""Seconds that one timing takes at least, by repeating a short call: far above the clock's resolution."""
PRODUCT_SIZE, PRODUCT_TRIALS = 1024, 12


@dataclass(frozen=True)
class Median:
    """A median and the interval that contains the true median with at least the given confidence."""

    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """The width of the interval relative to the median."""
        return (self.high - self.low) / abs(self.value)


@lru_cache
def rank(n: int, confidence: float = CONFIDENCE) -> int:
    """Return the greatest k such that the k-th smallest and k-th largest of n enclose the median, or 0.

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
    """Return the median of values with its interval.

    Raises:
        ValueError: so few values cannot enclose a median with that confidence.
    """
    k = rank(len(values), confidence)
    if not k:
        raise ValueError(f"{len(values)} values are too few for an interval of confidence {confidence}")
    ordered = sorted(values)
    return Median(statistics.median(ordered), ordered[k - 1], ordered[-k])


@dataclass(frozen=True)
class Call:
    """A call to time."""

    run: Callable[[], object]
    before: Callable[[], object] | None = None
    """Preparation for each run, which is not timed."""


@dataclass(frozen=True)
class Limits:
    """When to stop."""

    width: float = 0.02
    """The relative width of a ratio's interval that is narrow enough."""
    seconds: float = 8.0
    """Time for all rounds together. The fewest rounds that have an interval are always run."""


@dataclass(frozen=True)
class Timing:
    """One call compared with the first, which is the reference. The fields are those of `Measured`."""

    value: float
    """Seconds of one call: the median over the rounds."""
    reference: float
    ratio: float
    low: float
    high: float
    rounds: int
    tight: bool


def in_rounds(calls: Sequence[Call], limits: Limits) -> list[Timing]:
    """Time calls that have been warmed up. Return a timing of each call but the first, which is the reference."""
    number = _repeats(calls)
    rounds: list[list[float]] = []
    started, next_check = time.perf_counter(), FEWEST
    while True:
        rounds.append(_round(calls, number, len(rounds)))
        if len(rounds) < FEWEST:
            continue
        late = time.perf_counter() - started > limits.seconds
        if late or len(rounds) >= next_check:
            next_check = int(len(rounds) * ROUNDS_GROWTH) + 1
            ratios = [median([each[place] / each[0] for each in rounds]) for place in range(1, len(calls))]
            if late or all(ratio.width <= limits.width for ratio in ratios):
                break
    seconds = [statistics.median(column) for column in zip(*rounds, strict=True)]
    return [
        Timing(value, seconds[0], ratio.value, ratio.low, ratio.high, len(rounds), ratio.width <= limits.width)
        for value, ratio in zip(seconds[1:], ratios, strict=True)
    ]


def _round(calls: Sequence[Call], number: int, turn: int) -> list[float]:
    """Return the seconds of each call, in the order of `calls`. The call to start with depends on the turn."""
    seconds = [0.0] * len(calls)
    for step in range(len(calls)):
        place = (turn + step) % len(calls)
        seconds[place] = _seconds(calls[place], number)
    return seconds


def _seconds(call: Call, number: int) -> float:
    if call.before is not None:
        call.before()
    return timeit.Timer(call.run, timer=timer).timeit(number) / number


def timer() -> float:
    """Return the time in seconds when all devices have finished what they were given."""
    synchronize()
    return timeit.default_timer()


def _repeats(calls: Sequence[Call]) -> int:
    """Return how often to repeat each call within one timing, so that the shortest call takes long enough."""
    if any(call.before is not None for call in calls):
        return 1
    return max(1, round(SHORTEST / min(_seconds(call, 1) for call in calls)))


def product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Return the FLOP/s of a square matrix product: the best of several trials."""
    left, right = (torch.randn(PRODUCT_SIZE, PRODUCT_SIZE).to(dtype).to(device) for _ in range(2))
    out = torch.empty_like(left)
    best = min(timeit.Timer(lambda: torch.mm(left, right, out=out), timer=timer).repeat(PRODUCT_TRIALS, number=1))
    return float(2 * PRODUCT_SIZE**3 / best)


def product_flops(run: Callable[[], object]) -> int:
    """Return the FLOPs of all matrix products in a call, gradients included, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        run()
    flops: int = counter.get_total_flops()
    return flops
