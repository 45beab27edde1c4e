"""Scores that are scaled before the mask is added: correct arithmetic is within the bounds, and faults exceed them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.codegen.modeling_codegen import apply_rotary_pos_emb, create_sinusoidal_positions

from cgverify.oracle.arithmetic import Expected, exact_input
from cgverify.oracle.rope import rope, rounded_to
from cgverify.oracle.scaled_scores import autocast_scaled_scores, scaled_scores
from cgverify.oracle.shortcuts import NO_SHORTCUTS
from cgverify.verification.metrics import assess

HEAD_DIM = 24
SCALE = HEAD_DIM**-0.5
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
HALVES = [torch.bfloat16, torch.float16]
seeds = st.integers(0, 10_000)

Scores = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
CORRECT: dict[str, Scores] = {
    "Hugging Face's": lambda q, k, mask: q @ k.mT * SCALE + mask,
    "divided": lambda q, k, mask: q @ k.mT / HEAD_DIM**0.5 + mask,
    "scaled query": lambda q, k, mask: (q * SCALE) @ k.mT + mask,
    "permuted sum": lambda q, k, mask: q.flip(-1) @ k.flip(-1).mT * SCALE + mask,
    "fused": lambda q, k, mask: torch.baddbmm(
        mask.expand(*q.shape[:2], -1, -1).flatten(0, 1).to(torch.float32),
        q.flatten(0, 1),
        k.flatten(0, 1).mT,
        alpha=SCALE,
    ).view(*q.shape[:-1], -1),
}
FAULTS: dict[str, Scores] = {
    "mask before the scale": lambda q, k, mask: (q @ k.mT + mask) * SCALE,
    "scaled by a ten-thousandth too much": lambda q, k, mask: q @ k.mT * (SCALE * 1.0001) + mask,
    "no scale": lambda q, k, mask: q @ k.mT + mask,
    "half a mask": lambda q, k, mask: q @ k.mT * SCALE + mask / 2,
    "product in bfloat16": lambda q, k, mask: (q.bfloat16() @ k.bfloat16().mT).float() * SCALE + mask,
}


def r(tap: torch.Tensor, expected: Expected) -> float:
    assert tap.dtype == expected.dtype
    assert tap.shape == expected.value.shape
    return assess(tap, expected)[0].value


def operands(seed: int, dtype: torch.dtype, mask_dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return q `[2, 4, 7, 24]` and k `[2, 4, 9, 24]` in rotated heads' layout, and a soft mask under a causal one."""
    generator = torch.Generator().manual_seed(seed)
    query, key = (
        (torch.randn(2, length, 4, HEAD_DIM, generator=generator) * 3).to(dtype).transpose(1, 2) for length in (7, 9)
    )
    mask = (torch.randn(2, 1, 7, 9, generator=generator) * 2).to(mask_dtype)
    return query, key, mask.masked_fill(torch.ones(7, 9).triu(3).bool(), torch.finfo(mask_dtype).min)


@given(seed=seeds, dtype=st.sampled_from(DTYPES), name=st.sampled_from(sorted(CORRECT)))
def test_correct_scores_are_within_their_bound(seed: int, dtype: torch.dtype, name: str) -> None:
    query, key, mask = operands(seed, dtype, torch.float32 if dtype == torch.float64 else dtype)
    expected = scaled_scores(exact_input(query), exact_input(key), mask, NO_SHORTCUTS)
    assert r(CORRECT[name](query.float(), key.float(), mask), expected) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAULTS)
def test_wrong_scores_exceed_their_bound(name: str, dtype: torch.dtype) -> None:
    query, key, mask = operands(0, dtype, torch.float32)
    if name == "product in bfloat16" and dtype == torch.bfloat16:
        query = query * 1.01  # rounded already, its products are exact
    expected = scaled_scores(exact_input(query), exact_input(key), mask, NO_SHORTCUTS)
    assert r(FAULTS[name](query.float(), key.float(), mask), expected) > 1


def test_float64_mask_promotes_the_scores() -> None:
    query, key, mask = operands(1, torch.float64, torch.float64)
    expected = scaled_scores(exact_input(query), exact_input(key), mask, NO_SHORTCUTS)
    assert r(query.float() @ key.float().mT * SCALE + mask, expected) <= 1


@given(seed=seeds, dtype=st.sampled_from(DTYPES))
def test_rotation_is_rounded_once_to_its_own_dtype(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 7, 4, 16, generator=generator).to(dtype)
    table, positions = create_sinusoidal_positions(500, 8), torch.randint(500, (2, 7), generator=generator)
    rotated = apply_rotary_pos_emb(x[..., :8], *table[positions].chunk(2, dim=-1))
    tap = torch.cat((rotated, x[..., 8:].to(rotated.dtype)), dim=-1)
    expected = rounded_to(rope(x, table, positions), x.dtype)
    assert r(tap.to(dtype), expected) <= 1
    passed = tap.to(dtype).clone()
    passed[..., 8] = torch.nextafter(passed[..., 8], passed.new_ones(()) * 9)
    assert r(passed, expected) > 1  # dimensions that are not rotated may not change a bit
    if dtype in HALVES:
        assert rope(x, table, positions).dtype == torch.float32


@given(seed=seeds, low=st.sampled_from(HALVES), wide=st.booleans())
def test_autocast_scores_are_within_their_bound(seed: int, low: torch.dtype, wide: bool) -> None:
    query, key, mask = operands(seed, torch.float32 if wide else low, torch.float32 if wide else low)
    with torch.autocast("cpu", low):
        tap = torch.matmul(query.to(torch.float32), key.to(torch.float32).mT) * SCALE + mask
    expected = autocast_scaled_scores(exact_input(query), exact_input(key), mask, low, NO_SHORTCUTS)
    assert r(tap, expected) <= 1
    assert r(((query.float() @ key.float().mT + mask) * SCALE).to(tap.dtype), expected) > 1


@pytest.mark.parametrize("low", HALVES)
def test_autocast_scores_in_float32_exceed_their_bound(low: torch.dtype) -> None:
    """A product that leaves autocast is more exact, and is another computation."""
    query, key, mask = operands(2, torch.float32, torch.float32)
    expected = autocast_scaled_scores(exact_input(query), exact_input(key), mask, low, NO_SHORTCUTS)
    assert r(query @ key.mT * SCALE + mask, expected) > 1
