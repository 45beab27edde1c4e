"""Figures and verdicts: worked numbers, and the conventions of non-finite values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cgverify.common.records import Verdict
from cgverify.oracle.arithmetic import Expected
from cgverify.verification.metrics import Difference, Worst, assess, difference, verdict

INF, NAN = math.inf, math.nan


def must(value: list[float], bound: list[float], dtype: torch.dtype = torch.float32) -> Expected:
    return Expected(torch.tensor(value).double(), torch.tensor(bound).double(), dtype)


def test_the_example_of_the_docstring() -> None:
    worst, error = assess(torch.tensor([1.0, 2.5]), must([1.0, 2.0], [0.1, 0.25]))
    assert worst == Worst(value=2.0, index=1)
    assert error == 0.5


@pytest.mark.parametrize(
    ("tap", "value", "bound", "r"),
    [
        (1.0, 1.0, 0.0, 0.0),
        (1.0, 1.5, 0.0, INF),
        (NAN, NAN, 1.0, 0.0),
        (NAN, 1.0, 1.0, INF),
        (1.0, NAN, 1.0, INF),
        (INF, INF, 0.0, 0.0),
        (INF, -INF, 1.0, INF),
        (INF, 1.0, 1.0, INF),
        (1.0, INF, 1.0, INF),
        (INF, 3.4e38, 1e37, 0.0),
        (-INF, 3.4e38, 1e37, INF),
        (INF, 3.3e38, 1e36, INF),
    ],
)
def test_conventions(tap: float, value: float, bound: float, r: float) -> None:
    assert assess(torch.tensor([tap]), must([value], [bound]))[0].value == r


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20), st.floats(1e-3, 10))
def test_r_is_the_greatest_quotient(values: list[float], bound: float) -> None:
    worst, _ = assess(torch.tensor(values), must([0.0] * len(values), [bound] * len(values)))
    assert worst.value == pytest.approx(max(abs(value) for value in values) / bound)


def test_difference_leaves_out_what_is_hidden() -> None:
    candidate, reference = torch.tensor([[1.0, 9.0], [3.0, 4.5]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    seen = difference(candidate, reference)
    assert (seen.bitwise, seen.max_abs, seen.index) == (False, 7.0, 1)
    seen = difference(candidate, reference, visible=torch.tensor([[True, False], [True, True]]))
    assert (seen.max_abs, seen.index) == (0.5, 3)


def test_difference_is_infinite_where_one_is_not_finite() -> None:
    assert difference(torch.tensor([NAN, 1.0]), torch.tensor([1.0, 1.0])).max_abs == INF
    assert difference(torch.tensor([INF, NAN]), torch.tensor([INF, NAN])).bitwise


SAME = Difference(bitwise=True, max_abs=0.0, max_ulp=0.0, index=0)


def apart(**figures: Any) -> Difference:
    return Difference(**{"bitwise": False, "max_abs": 1e-6, "max_ulp": 4.0, "index": 0} | figures)


@pytest.mark.parametrize(
    ("r", "against", "said"),
    [
        (0.5, SAME, Verdict.BITWISE),
        (2.0, SAME, Verdict.BITWISE),
        (None, SAME, Verdict.BITWISE),
        (0.5, apart(), Verdict.ULP),
        (1.0, apart(max_ulp=5.0), Verdict.BOUNDED),
        (0.5, None, Verdict.BOUNDED),
        (1.001, apart(), Verdict.DIVERGED),
        (NAN, apart(), Verdict.DIVERGED),
        (None, apart(), Verdict.DIVERGED),
        (0.5, apart(max_abs=INF), Verdict.DIVERGED),
    ],
)
def test_the_ladder(r: float | None, against: Difference | None, said: Verdict) -> None:
    assert verdict(r, against) is said
