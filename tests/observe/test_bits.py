"""Distances in units in the last place, against an independent truth: `torch.nextafter`."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cgverify.observe.bits import digest, same_bits, same_tensor, ulp_distance

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@given(value=st.floats(-1e4, 1e4), steps=st.integers(0, 5))
def test_the_distance_is_the_number_of_steps(dtype: torch.dtype, value: float, steps: int) -> None:
    start = torch.tensor([value], dtype=dtype)
    end = start.clone()
    for _ in range(steps):
        end = torch.nextafter(end, torch.tensor([math.inf], dtype=dtype))
    assert ulp_distance(start, end).item() == steps
    assert ulp_distance(end, start).item() == steps


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_nan_and_infinity(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, math.nan, math.nan, 1.0, math.inf], dtype=dtype)
    y = torch.tensor([-0.0, math.nan, 1.0, math.nan, math.inf], dtype=dtype)
    assert ulp_distance(x, y).tolist() == [0.0, 0.0, math.inf, math.inf, 0.0]
    assert same_bits(x, y).tolist() == [False, True, False, False, True]


def test_worked_numbers() -> None:
    one = torch.tensor([1.0])
    assert ulp_distance(one, torch.tensor([1.0000001])).item() == 1
    assert ulp_distance(torch.tensor([1.0], dtype=torch.float64), torch.tensor([1.0 + 2**-52]).double()).item() == 0
    smallest = torch.tensor([2.0**-149])
    assert ulp_distance(smallest, -smallest).item() == 2
    assert ulp_distance(torch.tensor([7]), torch.tensor([9])).item() == 1


def test_the_farthest_floats_do_not_overflow() -> None:
    largest = torch.tensor([torch.finfo(torch.float64).max], dtype=torch.float64)
    assert ulp_distance(largest, -largest).item() == pytest.approx(2.0**64, rel=0.01)


def test_same_tensor_wants_shape_and_dtype_as_well() -> None:
    x = torch.ones(2, 3)
    assert same_tensor(x, x.T.contiguous().T)
    assert not same_tensor(x, x.T)
    assert not same_tensor(x, x.double())


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_tensor_knows_zeros_apart_and_nans_alike(dtype: torch.dtype) -> None:
    nan = torch.tensor([math.nan], dtype=dtype)
    assert same_tensor(nan, -nan)  # other bits, a NaN all the same
    assert same_tensor(nan, nan.clone())
    assert not same_tensor(torch.zeros(1, dtype=dtype), -torch.zeros(1, dtype=dtype))
    assert not same_tensor(nan, torch.ones(1, dtype=dtype))


def test_digest_depends_on_bits_shape_and_dtype() -> None:
    x = torch.tensor([[0.0, 1.0]])
    assert digest(x) == digest(x.T.contiguous().T)
    others = [-x, x.T, x.to(torch.bfloat16), x.view(torch.int32)]
    assert len({digest(x), *map(digest, others)}) == 5
