"""Timing in rounds, and the interval of a median. No measured time is judged here."""

from __future__ import annotations

import random
import time
from math import comb

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cgverify.bench import timing
from cgverify.bench.timing import (
    CONFIDENCE,
    FEWEST,
    Call,
    Limits,
    in_rounds,
    median,
    product_flops,
    product_rate,
    rank,
)


def coverage(n: int, k: int) -> float:
    """Return the probability that the k-th smallest and k-th largest of n enclose the median."""
    return 1 - 2 * sum(comb(n, j) for j in range(k)) / 2**n


@given(st.integers(1, 400), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_rank_is_the_greatest_with_enough_confidence(n: int, confidence: float) -> None:
    k = rank(n, confidence)
    assert coverage(n, k) >= confidence - 1e-9
    if k < n // 2:
        assert coverage(n, k + 1) < confidence + 1e-9


def test_rank_agrees_with_the_published_table() -> None:
    """David and Nagaraja, Order Statistics, and any table of the sign test."""
    assert {n: rank(n) for n in (5, 6, 9, 12, 20, 50, 100)} == {5: 0, 6: 1, 9: 2, 12: 3, 20: 6, 50: 18, 100: 40}
    assert FEWEST == 6


@pytest.mark.parametrize(
    "draw",
    [lambda r: r.lognormvariate(0, 0.5), lambda r: r.paretovariate(1.1), lambda r: r.choice([1, 1, 1, 9]) + r.random()],
    ids=["skewed", "heavy tail", "outliers"],
)
@pytest.mark.parametrize("n", [6, 15, 60])
def test_interval_contains_the_true_median_often_enough(draw: object, n: int) -> None:
    assert callable(draw)
    source = random.Random(n)
    many = sorted(draw(source) for _ in range(20_001))
    truth = many[10_000]
    trials = 1500
    inside = sum(m.low <= truth <= m.high for m in (median([draw(source) for _ in range(n)]) for _ in range(trials)))
    # Three standard deviations of a binomial count, and 1 % because the truth was sampled too.
    slack = 3 * (CONFIDENCE * (1 - CONFIDENCE) / trials) ** 0.5 + 0.01
    assert inside / trials >= CONFIDENCE - slack


@given(st.lists(st.floats(0.1, 10), min_size=FEWEST, max_size=60), st.floats(0.1, 10))
def test_interval_scales_with_the_values(values: list[float], factor: float) -> None:
    one, scaled = median(values), median([factor * value for value in values])
    assert one.low <= one.value <= one.high
    assert (scaled.low, scaled.high) == (factor * one.low, factor * one.high)
    assert scaled.width == pytest.approx(one.width)


def test_median_of_too_few_values_raises() -> None:
    with pytest.raises(ValueError, match="too few"):
        median([1.0] * (FEWEST - 1))


def test_round_runs_every_call_and_starts_with_another() -> None:
    ran: list[str] = []
    calls = [Call(lambda name=name: ran.append(name), before=lambda: None) for name in "abc"]  # type: ignore[misc]
    timings = in_rounds(calls, Limits(seconds=0))
    assert [found.rounds for found in timings] == [FEWEST, FEWEST]
    by_round = ["".join(ran[start : start + 3]) for start in range(0, len(ran), 3)]
    assert by_round == ["abc", "bca", "cab", "abc", "bca", "cab"]


def scripted(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, list[float]]) -> list[Call]:
    """Return calls that take the given times, one after another, and the last one for ever."""

    def next_time(call: Call, _: int) -> float:
        times = seconds[str(call.run())]
        return times.pop(0) if len(times) > 1 else times[0]

    monkeypatch.setattr(timing, "_seconds", next_time)
    monkeypatch.setattr(timing, "_repeats", lambda _: 1)
    return [Call(lambda name=name: name) for name in seconds]  # type: ignore[misc]


def test_drift_of_the_machine_leaves_the_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    drift = [1 + n / 10 for n in range(30)]
    calls = scripted(
        monkeypatch, {"reference": drift, "half": [t / 2 for t in drift], "double": [2 * t for t in drift]}
    )
    half, double = in_rounds(calls, Limits(width=0.001, seconds=60))
    assert (half.ratio, half.low, half.high) == (0.5, 0.5, 0.5)
    assert double.ratio == 2
    assert double.tight
    assert double.rounds == FEWEST
    assert (half.value, half.reference) == (1.25 / 2, 1.25)


def test_rounds_go_on_until_every_interval_is_tight(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = [1.0, 2.0] * FEWEST + [1.5]
    calls = scripted(monkeypatch, {"reference": [1.0], "steady": [1.0], "noisy": noisy})
    steady, settled = in_rounds(calls, Limits(width=0.01, seconds=60))
    assert steady.rounds == settled.rounds > 2 * FEWEST
    assert settled.tight
    assert settled.ratio == 1.5


def test_stopping_early_keeps_the_confidence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_repeats", lambda _: 1)
    trials, inside = 400, 0
    for seed in range(trials):
        noise = random.Random(seed)
        monkeypatch.setattr(
            timing, "_seconds", lambda call, _, noise=noise: call.run() * noise.lognormvariate(0, 0.015)
        )
        (found,) = in_rounds([Call(lambda: 1.0), Call(lambda: 0.8)], Limits(width=0.02, seconds=60))
        assert found.tight
        inside += found.low <= 0.8 <= found.high
    # Checking the interval costs a little of the 95 %. Three standard deviations of the count beyond that.
    assert inside / trials >= 0.94 - 3 * (0.05 * 0.95 / trials) ** 0.5


def test_time_limit_stops_and_marks_the_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = scripted(monkeypatch, {"reference": [1.0], "noisy": [1.0, 3.0] * 10_000})
    started = time.perf_counter()
    (found,) = in_rounds(calls, Limits(width=0.01, seconds=0.05))
    assert time.perf_counter() - started < 20
    assert not found.tight
    assert found.rounds >= FEWEST


def test_short_calls_repeat_and_preparation_is_not_timed() -> None:
    count = 0

    def run() -> None:
        nonlocal count
        count += 1

    in_rounds([Call(run), Call(run)], Limits(seconds=0))
    assert count > 1000
    (found,) = in_rounds([Call(run), Call(run, before=lambda: time.sleep(0.02))], Limits(seconds=0))
    assert found.value < 0.02


def test_flops_are_those_of_the_products() -> None:
    left, right = torch.ones(3, 5), torch.ones(5, 7)
    with torch.inference_mode():
        assert product_flops(lambda: left @ right) == 2 * 3 * 5 * 7
    assert product_rate(torch.float32, torch.device("cpu")) > 1e6
