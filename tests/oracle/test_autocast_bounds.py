"""Bounds under autocast: torch's products and scores are within them, one rounding more or less exceeds them."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from cgverify.oracle.arithmetic import Expected, bounded_output, exact_input
from cgverify.oracle.autocast import operand, widened
from cgverify.oracle.block_sum import block_sum
from cgverify.oracle.gelu import gelu_new
from cgverify.oracle.mix import mix
from cgverify.oracle.product import products
from cgverify.oracle.scores import autocast_scores
from cgverify.oracle.shortcuts import NO_SHORTCUTS
from cgverify.verification.metrics import assess

WIDE = [torch.float32, torch.bfloat16, torch.float16]
HALVES = [torch.bfloat16, torch.float16]
PAIRS = [(torch.float64, torch.bfloat16), (torch.float32, torch.bfloat16), (torch.float32, torch.float16)]
PAIRS += [(low, low) for low in HALVES]


def r_of(tap: torch.Tensor, of: Expected) -> float:
    assert tap.shape == of.value.shape
    assert tap.dtype == of.dtype
    return assess(tap, of)[0].value


def normal(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# --- products ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "low"), PAIRS)
def test_only_linears_under_autocast_are_within_their_bound(dtype: torch.dtype, low: torch.dtype) -> None:
    x, weight, bias = normal(16, 256, dtype=dtype), normal(64, 256, dtype=dtype, seed=1), normal(64, dtype=dtype)
    with torch.autocast("cpu", low):
        y = functional.linear(x, weight, bias)
    ((_, (of,)),) = products([x], weight, bias, NO_SHORTCUTS, low)
    assert y.dtype == of.dtype
    if dtype == torch.float64:  # is not eligible
        assert of.dtype == torch.float64
    elif dtype == torch.float32:
        assert 0.4 <= r_of(y, of) <= 1
        assert r_of(functional.linear(x, weight, bias).to(low), of) > 1
        only_input = functional.linear(operand(x, low).float(), weight, bias).to(low)
        assert r_of(only_input, of) > 1
    else:
        ((_, (plain,)),) = products([x], weight, bias, NO_SHORTCUTS)
        assert torch.equal(of.bound, plain.bound)


@pytest.mark.parametrize("low", HALVES)
def test_float32_pattern_is_rounded_before_the_mix(low: torch.dtype) -> None:
    pattern, value = normal(2, 4, 6, 9, dtype=torch.float32).softmax(-1), normal(2, 4, 9, 16, dtype=low).float()
    of = mix(operand(pattern, low), operand(value, low), NO_SHORTCUTS)
    with torch.autocast("cpu", low):
        z = (pattern @ value).transpose(1, 2)
    assert 0.4 <= r_of(z, of) <= 1
    assert r_of((pattern @ value).transpose(1, 2).to(low), of) > 1


# --- scores -----------------------------------------------------------------------------------------------------------


def scored(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor, low: torch.dtype) -> torch.Tensor:
    """Return scores as Hugging Face's `_attn` computes them."""
    with torch.autocast("cpu", low):
        summed = torch.matmul(q.to(torch.float32), k.to(torch.float32).transpose(-1, -2)) + mask
    return summed / math.sqrt(q.shape[-1])


def attention(dtype: torch.dtype, seed: int, head_dim: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return q and k as after the rotation, and a soft mask under a causal one."""
    wide = torch.promote_types(dtype, torch.float32)
    q, k = (normal(2, 3, 8, head_dim, dtype=wide, seed=seed + i) * 2 for i in (0, 1))
    hidden = torch.ones(8, 8, dtype=torch.bool).triu(1)
    return q, k, normal(2, 1, 8, 8, dtype=dtype, seed=seed).masked_fill(hidden, torch.finfo(dtype).min)


@pytest.mark.parametrize(("dtype", "low"), PAIRS)
def test_scores_of_hugging_face_are_just_within_their_bound(dtype: torch.dtype, low: torch.dtype) -> None:
    largest = 0.0
    for seed in range(20):
        q, k, mask = attention(dtype, seed)
        of = autocast_scores(exact_input(q), exact_input(k), mask, low, NO_SHORTCUTS)
        largest = max(largest, r_of(scored(q, k, mask, low), of))
        reciprocal = scored(q, k, mask, low) * math.sqrt(q.shape[-1]) * (1 / math.sqrt(q.shape[-1]))
        assert dtype in HALVES or r_of(reciprocal, of) <= 1
    assert 0.4 <= largest <= 1


@pytest.mark.parametrize(("dtype", "low"), PAIRS)
def test_scores_of_another_precision_exceed_their_bound(dtype: torch.dtype, low: torch.dtype) -> None:
    q, k, mask = attention(dtype, 0)
    of = autocast_scores(exact_input(q), exact_input(k), mask, low, NO_SHORTCUTS)
    outside = ((q @ k.mT + mask) / math.sqrt(q.shape[-1])).to(of.dtype)
    assert r_of(outside, of) > 1
    assert r_of(scored(q, k, mask * 0, low), of) > 1
    other = next(half for half in HALVES if half != low)
    assert r_of(scored(q.to(other).to(q.dtype), k, mask, low), of) > 1


@pytest.mark.parametrize("low", HALVES)
def test_unseen_queries_add_the_bound_of_their_stage(low: torch.dtype) -> None:
    q, k, mask = attention(torch.float32, 3)
    unseen = bounded_output(q.double(), q.double().abs() * 2.0**-20, torch.float32)
    nearby = q * (1 + 2.0**-21)
    of = autocast_scores(unseen, exact_input(k), mask, low, NO_SHORTCUTS)
    assert r_of(scored(nearby, k, mask, low), of) <= 1
    assert r_of(scored(q * 1.1, k, mask, low), of) > 1


def test_masked_score_may_overflow_only_in_float16() -> None:
    q, k, mask = attention(torch.float16, 0)
    scores = scored(q * 4, k * 4, mask, torch.float16)
    assert scores.isinf().any()
    of = autocast_scores(exact_input(q * 4), exact_input(k * 4), mask, torch.float16, NO_SHORTCUTS)
    assert r_of(scores, of) <= 1
    assert r_of(torch.where(mask == torch.finfo(torch.float16).min, scores, -torch.inf), of) == math.inf
    for dtype in (torch.float32, torch.bfloat16):
        q, k, mask = attention(dtype, 0)
        of = autocast_scores(exact_input(q), exact_input(k), mask, torch.bfloat16, NO_SHORTCUTS)
        unmasked = scored(q, k, mask * 0, torch.bfloat16).to(of.dtype)
        assert r_of(unmasked, of) > 1


# --- the rest ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("low", HALVES)
def test_block_sum_rounds_its_branches_and_not_its_residual(low: torch.dtype) -> None:
    attn, mlp = normal(500, dtype=low), normal(500, dtype=low, seed=1)
    residual = normal(500, dtype=torch.float32, seed=2)
    of = block_sum(attn, mlp, residual)
    assert 0.4 <= r_of(attn + mlp + residual, of) <= 1
    assert r_of((residual + attn) + mlp, of) <= 1
    assert r_of(attn + mlp + residual.to(low).float(), of) > 1


def test_widened_dtype_is_that_of_torch() -> None:
    low = torch.bfloat16
    assert widened(low, lambda one: one.pow(3), low, "cpu") == low  # on CUDA it would be float32
    assert widened(low, lambda one: torch.cumsum(one.float(), 0), low, "cpu") == torch.float32


def test_gelu_with_a_widened_power_is_within_its_bound() -> None:
    x = torch.cat([normal(2000, dtype=torch.float16), 2e-4 * normal(2000, dtype=torch.float16)])
    y = 0.5 * x * (1.0 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x.float().pow(3))).tanh())
    assert y.dtype == torch.float32
    assert 0.01 <= r_of(y, gelu_new(x, torch.float32)) <= 1
    assert r_of(y, gelu_new(x.float())) > 100  # half of a small x is subnormal in float16
    assert r_of(y.half().float(), gelu_new(x, torch.float32)) > 100
