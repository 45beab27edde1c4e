"""Rounds: who runs when, and when it is enough. No time is judged here."""

from __future__ import annotations

import random
import time

import pytest

from cgverify.bench import rounds
from cgverify.bench.rounds import Call, Limits, in_rounds
from cgverify.bench.statistics import FEWEST


def test_every_call_runs_once_a_round_and_each_goes_first_in_turn() -> None:
    ran: list[str] = []
    calls = [Call(lambda name=name: ran.append(name), before=lambda: None) for name in "abc"]  # type: ignore[misc]
    timings = in_rounds(calls, Limits(seconds=0))
    assert len(timings) == 2
    assert all(timing.rounds == FEWEST for timing in timings)
    by_round = ["".join(ran[start : start + 3]) for start in range(0, len(ran), 3)]
    assert by_round == ["abc", "bca", "cab", "abc", "bca", "cab"]


def scripted(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, list[float]]) -> list[Call]:
    """Calls whose times are given, one after another, the last for ever."""

    def timing(call: Call, _: int) -> float:
        times = seconds[str(call.run())]
        return times.pop(0) if len(times) > 1 else times[0]

    monkeypatch.setattr(rounds, "_seconds", timing)
    monkeypatch.setattr(rounds, "_repeats", lambda _: 1)
    return [Call(lambda name=name: name) for name in seconds]  # type: ignore[misc]


def test_drift_of_the_machine_falls_out_of_the_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    drift = [1 + n / 10 for n in range(30)]
    calls = scripted(
        monkeypatch, {"reference": drift, "half": [t / 2 for t in drift], "double": [2 * t for t in drift]}
    )
    half, double = in_rounds(calls, Limits(width=0.001, seconds=60))
    assert (half.ratio.value, half.ratio.low, half.ratio.high) == (0.5, 0.5, 0.5)
    assert double.ratio.value == 2
    assert double.tight
    assert double.rounds == FEWEST
    assert (half.seconds, half.first_seconds) == (1.25 / 2, 1.25)


def test_it_goes_on_until_every_interval_is_tight(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = [1.0, 2.0] * FEWEST + [1.5]
    calls = scripted(monkeypatch, {"reference": [1.0], "steady": [1.0], "noisy": noisy})
    steady, settled = in_rounds(calls, Limits(width=0.01, seconds=60))
    assert steady.rounds == settled.rounds > 2 * FEWEST
    assert settled.tight
    assert settled.ratio.value == 1.5


def test_stopping_at_a_tight_interval_keeps_its_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "_repeats", lambda _: 1)
    trials, inside = 400, 0
    for seed in range(trials):
        noise = random.Random(seed)
        monkeypatch.setattr(
            rounds, "_seconds", lambda call, _, noise=noise: call.run() * noise.lognormvariate(0, 0.015)
        )
        (timing,) = in_rounds([Call(lambda: 1.0), Call(lambda: 0.8)], Limits(width=0.02, seconds=60))
        assert timing.tight
        inside += timing.ratio.low <= 0.8 <= timing.ratio.high
    # Looks cost a little of the 95 %; three standard deviations of the count beyond that.
    assert inside / trials >= 0.94 - 3 * (0.05 * 0.95 / trials) ** 0.5


def test_a_time_limit_ends_it_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = scripted(monkeypatch, {"reference": [1.0], "noisy": [1.0, 3.0] * 10_000})
    started = time.perf_counter()
    (timing,) = in_rounds(calls, Limits(width=0.01, seconds=0.05))
    assert time.perf_counter() - started < 20
    assert not timing.tight
    assert timing.rounds >= FEWEST


def test_short_calls_are_repeated_and_what_comes_before_is_not_timed() -> None:
    count = 0

    def run() -> None:
        nonlocal count
        count += 1

    in_rounds([Call(run), Call(run)], Limits(seconds=0))
    assert count > 1000
    (timing,) = in_rounds([Call(run), Call(run, before=lambda: time.sleep(0.02))], Limits(seconds=0))
    assert timing.seconds < 0.02
