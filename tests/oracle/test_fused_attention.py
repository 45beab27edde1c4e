"""Attention in one kernel: correct forms of it are within the composed bound, and faults exceed it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from cgverify.oracle.arithmetic import exact_input
from cgverify.oracle.fused_attention import fused_attention
from cgverify.oracle.shortcuts import NO_SHORTCUTS
from cgverify.verification.metrics import assess

HEAD_DIM = 16
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def sdpa(backend: SDPBackend) -> Attend:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return attend


def eager(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(wide) @ k.to(wide).mT * HEAD_DIM**-0.5 + mask
    return scores.softmax(-1).to(v.dtype) @ v


def exp2(exponent: torch.Tensor) -> torch.Tensor:
    return (exponent * math.log2(math.e)).exp2()


def online(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    power: Callable[[torch.Tensor], torch.Tensor] = torch.exp,
) -> torch.Tensor:
    """Take the keys in blocks of 16, and rescale as FlashAttention does."""
    wide = torch.promote_types(q.dtype, torch.float32)
    greatest = q.new_full((*q.shape[:-1], 1), -torch.inf, dtype=wide)
    total, mixed = torch.zeros_like(greatest), torch.zeros_like(q, dtype=wide)
    for start in range(0, k.shape[-2], 16):
        block = slice(start, start + 16)
        scores = q.to(wide) @ k[..., block, :].to(wide).mT * HEAD_DIM**-0.5 + mask[..., block]
        now = torch.maximum(greatest, scores.amax(-1, keepdim=True))
        weights, factor = power(scores - now), power(greatest - now)
        total = total * factor + weights.sum(-1, keepdim=True)
        mixed = mixed * factor + weights.to(v.dtype).to(wide) @ v[..., block, :].to(wide)
        greatest = now
    return (mixed / total).to(v.dtype)


CORRECT: dict[str, Attend] = {
    "torch's fused kernel": sdpa(SDPBackend.FLASH_ATTENTION),
    "torch's composite": sdpa(SDPBackend.MATH),
    "eager": eager,
    "online softmax": online,
    "online softmax with powers of 2": partial(online, power=exp2),
}
FAULTS: dict[str, Attend] = {
    "mask ignored": lambda q, k, v, mask: eager(q, k, v, torch.zeros_like(mask)),
    "mask before the scale": lambda q, k, v, mask: eager(q, k, v, mask * HEAD_DIM**-0.5),
    "no scale": lambda q, k, v, mask: eager(q * HEAD_DIM**0.5, k, v, mask),
    "last key left out": lambda q, k, v, mask: eager(q, k[..., :-1, :], v[..., :-1, :], mask[..., :-1]),
    "heads exchanged": lambda q, k, v, mask: eager(q, k.flip(1), v, mask),
}


def operands(seed: int, dtype: torch.dtype, keys: int, soft: bool) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        (torch.randn(2, length, 4, HEAD_DIM, generator=generator) * scale).to(dtype).transpose(1, 2)
        for length, scale in ((7, 2), (keys, 2), (keys, 1))
    )
    mask = (torch.randn(2, 1, 7, keys, generator=generator) * (2 if soft else 0)).to(dtype)
    hidden = torch.ones(7, keys).triu(keys - 6).bool()
    mask = mask.masked_fill(hidden, torch.finfo(dtype).min)
    mask[0, :, 2] = torch.finfo(dtype).min  # a query that sees nothing
    return q, k, v, mask


def r(name: str, forms: dict[str, Attend], given: tuple[torch.Tensor, ...]) -> float:
    q, k, v, mask = given
    tap = forms[name](q, k, v, mask).transpose(1, 2)
    expected = fused_attention(exact_input(q), exact_input(k), v, mask, NO_SHORTCUTS)
    assert tap.dtype == expected.dtype
    assert tap.shape == expected.value.shape
    return assess(tap, expected)[0].value


@given(
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from(DTYPES),
    keys=st.sampled_from([7, 20, 300]),
    soft=st.booleans(),
    name=st.sampled_from(sorted(CORRECT)),
)
def test_correct_attention_is_within_its_bound(seed: int, dtype: torch.dtype, keys: int, soft: bool, name: str) -> None:
    assert r(name, CORRECT, operands(seed, dtype, keys, soft)) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAULTS)
def test_wrong_attention_exceeds_its_bound(name: str, dtype: torch.dtype) -> None:
    assert r(name, FAULTS, operands(0, dtype, 9, soft=True)) > 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_small_errors_of_scores_exceed_the_bound(dtype: torch.dtype) -> None:
    q, k, v, mask = operands(1, dtype, 9, soft=True)
    assert r("off", {"off": lambda q, k, v, mask: eager(q * 1.001, k, v, mask)}, (q, k, v, mask)) > 1
