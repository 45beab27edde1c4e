"""The interval of a median, held against what it promises."""

from __future__ import annotations

import random
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgverify.bench.statistics import CONFIDENCE, FEWEST, median, rank


def coverage(n: int, k: int) -> float:
    """The chance that the k-th smallest and k-th largest of n enclose the median."""
    return 1 - 2 * sum(comb(n, j) for j in range(k)) / 2**n


@settings(deadline=None)
@given(st.integers(1, 400), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_rank_is_the_greatest_that_keeps_the_promise(n: int, confidence: float) -> None:
    k = rank(n, confidence)
    assert coverage(n, k) >= confidence - 1e-9
    if k < n // 2:
        assert coverage(n, k + 1) < confidence + 1e-9


def test_a_table_of_ranks() -> None:
    """David and Nagaraja, Order Statistics, and any table of the sign test."""
    assert {n: rank(n) for n in (5, 6, 9, 12, 20, 50, 100)} == {5: 0, 6: 1, 9: 2, 12: 3, 20: 6, 50: 18, 100: 40}
    assert FEWEST == 6


@pytest.mark.parametrize(
    "draw",
    [lambda r: r.lognormvariate(0, 0.5), lambda r: r.paretovariate(1.1), lambda r: r.choice([1, 1, 1, 9]) + r.random()],
    ids=["skewed", "heavy tail", "outliers"],
)
@pytest.mark.parametrize("n", [6, 15, 60])
def test_the_true_median_lies_inside_as_often_as_promised(draw: object, n: int) -> None:
    assert callable(draw)
    source = random.Random(n)
    many = sorted(draw(source) for _ in range(20_001))
    truth = many[10_000]
    trials = 1500
    inside = sum(m.low <= truth <= m.high for m in (median([draw(source) for _ in range(n)]) for _ in range(trials)))
    # Three standard deviations of a binomial count, and one part in a hundred for the truth that was sampled itself.
    slack = 3 * (CONFIDENCE * (1 - CONFIDENCE) / trials) ** 0.5 + 0.01
    assert inside / trials >= CONFIDENCE - slack


@given(st.lists(st.floats(0.1, 10), min_size=FEWEST, max_size=60), st.floats(0.1, 10))
def test_it_scales_with_its_values_and_holds_the_median(values: list[float], factor: float) -> None:
    one, scaled = median(values), median([factor * value for value in values])
    assert one.low <= one.value <= one.high
    assert (scaled.low, scaled.high) == (factor * one.low, factor * one.high)
    assert scaled.width == pytest.approx(one.width)


def test_too_few_values_are_no_interval() -> None:
    with pytest.raises(ValueError, match="too few"):
        median([1.0] * (FEWEST - 1))
