"""Time several calls side by side: each round runs every one of them once, and what counts is the ratio in a round.

Drift of the machine falls on all calls of a round alike. Who goes first changes from round to round. The clock is
torch's own, which waits for an accelerator; `Timer.timeit` of torch would run every call twice more before it times it,
and so time it with its own weights in the cache, which no layer of a model has.
"""

from __future__ import annotations

import statistics
import time
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch.utils.benchmark import timer

from cgverify.bench.statistics import FEWEST, Median, median

LOOKS = 1.25
"""Rounds grow by this factor between looks at the interval, since each look is one more chance to stop too early: with
a look after every round, an interval of 95 % holds the true ratio in 93.5 % of measurements, and so in 94.6 %."""
BLOCK = 0.01
"""Seconds that one timing takes at least, by repeating a short call: far above the clock's own."""


@dataclass(frozen=True)
class Call:
    """Something to time."""

    run: Callable[[], object]
    before: Callable[[], object] | None = None
    """What it needs anew each time, and what is not timed."""


@dataclass(frozen=True)
class Limits:
    """When to stop."""

    width: float = 0.02
    """Relative width of a ratio's interval that is tight enough."""
    seconds: float = 8.0
    """For all rounds together; the fewest rounds that have an interval are run in any case."""


@dataclass(frozen=True)
class Timing:
    """One call beside the first."""

    seconds: float
    """Of one call: the median over the rounds."""
    first_seconds: float
    ratio: Median
    rounds: int
    tight: bool


def in_rounds(calls: Sequence[Call], limits: Limits) -> list[Timing]:
    """Time calls that have been warmed up; returns a timing for each but the first, which is the reference."""
    number = _repeats(calls)
    rounds: list[list[float]] = []
    started, look = time.perf_counter(), FEWEST
    while True:
        rounds.append(_round(calls, number, len(rounds)))
        if len(rounds) < FEWEST:
            continue
        late = time.perf_counter() - started > limits.seconds
        if late or len(rounds) >= look:
            look = int(len(rounds) * LOOKS) + 1
            ratios = [median([each[place] / each[0] for each in rounds]) for place in range(1, len(calls))]
            if late or all(ratio.width <= limits.width for ratio in ratios):
                break
    seconds = [statistics.median(each[place] for each in rounds) for place in range(len(calls))]
    return [
        Timing(seconds[place], seconds[0], ratio, len(rounds), ratio.width <= limits.width)
        for place, ratio in enumerate(ratios, start=1)
    ]


def _round(calls: Sequence[Call], number: int, turn: int) -> list[float]:
    """Seconds of one call of each, in the order of `calls`; the order of running is turned by one each round."""
    seconds = [0.0] * len(calls)
    for step in range(len(calls)):
        place = (turn + step) % len(calls)
        seconds[place] = _seconds(calls[place], number)
    return seconds


def _seconds(call: Call, number: int) -> float:
    if call.before is not None:
        call.before()
    return timeit.Timer(call.run, timer=timer).timeit(number) / number


def _repeats(calls: Sequence[Call]) -> int:
    """How often to run a call in one timing, so that the shortest lasts long enough."""
    if any(call.before is not None for call in calls):
        return 1
    shortest = min(_seconds(call, 1) for call in calls)
    return max(1, round(BLOCK / shortest))
