"""Correct code is within every bound, and no bound is loose: Hugging Face's modules and other correct variants."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812
from transformers.activations import NewGELUActivation
from transformers.models.codegen.modeling_codegen import apply_rotary_pos_emb, create_sinusoidal_positions

from cgverify.oracle.arithmetic import Expected, exact_input
from cgverify.oracle.block_sum import block_sum
from cgverify.oracle.cache import cached
from cgverify.oracle.gelu import gelu_new
from cgverify.oracle.layer_norm import layer_norm, normalized, scale
from cgverify.oracle.mix import mix
from cgverify.oracle.product import products
from cgverify.oracle.rope import rope
from cgverify.oracle.scaled_scores import scaled_scores
from cgverify.oracle.scores import scores
from cgverify.oracle.shortcuts import NO_SHORTCUTS
from cgverify.oracle.softmax import softmax
from cgverify.verification.metrics import assess

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 10_000)
LOG2_E = math.log2(math.e)


def r(tap: torch.Tensor, expected: Expected) -> float:
    assert tap.dtype == expected.dtype
    assert tap.shape == expected.value.shape
    return assess(tap, expected)[0].value


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- products ---------------------------------------------------------------------------------------------------------


def product_r(tap: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> float:
    worst = 0.0
    for columns, (answer,) in products([x], weight, bias, NO_SHORTCUTS):
        worst = max(worst, r(tap.reshape(-1, len(weight))[:, columns], answer))
    return worst


CORRECT: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "kernel": lambda x, w: x @ w.T,
    "row by row": lambda x, w: torch.stack([w @ row for row in x]),
    "permuted": lambda x, w: x.flip(-1) @ w.flip(-1).T,
    "split-K": lambda x, w: x[:, ::2] @ w[:, ::2].T + x[:, 1::2] @ w[:, 1::2].T,
    "one by one": lambda x, w: sum((x[:, i : i + 1] * w[:, i] for i in range(x.shape[1])), start=torch.zeros(1)),
}


@pytest.mark.parametrize("variant", CORRECT)
@given(seed=seeds, n=st.sampled_from([5, 64, 300, 1024]))
def test_correct_float32_products_are_within_their_bound(variant: str, seed: int, n: int) -> None:
    x, weight = randn(seed, 6, n), randn(seed + 1, 40, n) * 0.02
    assert product_r(CORRECT[variant](x, weight), x, weight) <= 1


@given(seed=seeds, dtype=dtypes, n=st.sampled_from([16, 192, 1024]), with_bias=st.booleans())
def test_products_of_every_dtype_are_within_their_bound(seed: int, dtype: torch.dtype, n: int, with_bias: bool) -> None:
    x, weight = randn(seed, 9, n).to(dtype), (randn(seed + 1, 30, n) * 0.05).to(dtype)
    bias = randn(seed + 2, 30).to(dtype) if with_bias else None
    assert product_r(F.linear(x, weight, bias), x, weight, bias) <= 1


FAULTS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "TF32 operands": lambda x, w: _tf32(x) @ _tf32(w).T,
    "weights in bfloat16": lambda x, w: x @ w.bfloat16().float().T,
    "result in bfloat16": lambda x, w: (x @ w.T).bfloat16().float(),
    "times 1.001": lambda x, w: (x @ w.T) * 1.001,
    "one input column dropped": lambda x, w: x[:, 1:] @ w[:, 1:].T,
}


def _tf32(x: torch.Tensor) -> torch.Tensor:
    """Return x with ten bits of mantissa."""
    return (x.view(torch.int32) + (1 << 12) & ~((1 << 13) - 1)).view(torch.float32)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("m", "n"), [(256, 1024), (128, 4096), (64, 16384)])
def test_faults_of_precision_exceed_the_bound_at_real_widths(fault: str, m: int, n: int) -> None:
    x, weight = randn(0, 8, n), randn(1, m, n) * 0.02
    assert product_r(FAULTS[fault](x, weight), x, weight) > 1
    assert 0.003 < product_r(x @ weight.T, x, weight) <= 1 or n > 4096


@pytest.mark.parametrize("small", ["operand", "sum"])
def test_products_of_bfloat16_may_flush_to_zero(small: str) -> None:
    tiny = torch.finfo(torch.bfloat16).tiny
    x = torch.full((1, 3, 24), tiny / 4 if small == "operand" else tiny**0.5 / 8, dtype=torch.bfloat16)
    w = torch.full((8, 24), 1.0 if small == "operand" else tiny**0.5 / 4, dtype=torch.bfloat16)
    ((_, (expected,)),) = products([x[0]], w, None, NO_SHORTCUTS)
    assert r(F.linear(x[0], w), expected) <= 1
    assert r(F.linear(x[0], w).new_zeros(3, 8), expected) <= 1
    assert r(torch.full_like(F.linear(x[0], w), 2.0**-100), expected) > 1
    pattern, value = x[:, None], w.T[None, None]
    mixed = mix(pattern, value, NO_SHORTCUTS)
    assert r((pattern @ value).transpose(1, 2), mixed) <= 1
    assert r(torch.zeros(1, 3, 1, 8, dtype=torch.bfloat16), mixed) <= 1


def test_products_of_several_inputs_equal_single_products() -> None:
    xs = [randn(0, 3, 8), randn(1, 2, 5, 8)]
    weight = randn(2, 7, 8)
    for columns, answers in products(xs, weight, None, NO_SHORTCUTS):
        for x, answer in zip(xs, answers, strict=True):
            exact = x.double().reshape(-1, 8) @ weight.double()[columns].T
            torch.testing.assert_close(answer.value, exact)


# --- the other stages -------------------------------------------------------------------------------------------------


@given(seed=seeds, dtype=dtypes, table_dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_rope_is_within_its_bound(seed: int, dtype: torch.dtype, table_dtype: torch.dtype) -> None:
    x = randn(seed, 2, 7, 4, 16).to(dtype)
    table = create_sinusoidal_positions(500, 8).to(table_dtype)
    positions = torch.randint(500, (2, 7), generator=torch.Generator().manual_seed(seed))
    sincos = table[positions]
    turned = apply_rotary_pos_emb(x[..., :8], sincos[..., :4], sincos[..., 4:])
    assert r(torch.cat((turned, x[..., 8:]), dim=-1), rope(x, table, positions)) <= 1


@given(seed=seeds, dtype=dtypes, soft=st.booleans(), reciprocal=st.booleans())
def test_scores_are_within_their_bound(seed: int, dtype: torch.dtype, soft: bool, reciprocal: bool) -> None:
    query, key = randn(seed, 2, 7, 4, 24) * 3, randn(seed + 1, 2, 4, 9, 24) * 3
    lowest = torch.finfo(dtype).min
    mask = (randn(seed + 2, 2, 1, 7, 9) * (2 if soft else 0)).to(dtype)
    mask = mask.masked_fill(torch.ones(7, 9).triu(3).bool(), lowest)
    raw = query.transpose(1, 2) @ key.transpose(-1, -2) + mask
    tap = raw * (1 / 24**0.5) if reciprocal else raw / 24**0.5
    expected = scores(exact_input(query.transpose(1, 2)), exact_input(key), mask, NO_SHORTCUTS)
    assert r(tap, expected) <= 1
    assert r(raw / 24**0.5 * (1 + 1e-4), expected) > 1


def summed_from(start: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Return start + q·kᵀ, one term of the product after another."""
    for q, k in zip(query.unbind(-1), key.unbind(-1), strict=True):
        start = start + q.unsqueeze(-1) * k.unsqueeze(-2)
    return start


@given(seed=seeds, dtype=dtypes, place=st.sampled_from([0, 11, 24]), large=st.booleans())
def test_mask_anywhere_in_the_sum_of_scores_is_within_bound(
    seed: int, dtype: torch.dtype, place: int, large: bool
) -> None:
    query, key = (randn(seed + i, 2, 4, n, 24) * (40 if large else 2) for i, n in enumerate((7, 9)))
    mask = randn(seed + 2, 2, 1, 7, 9).to(dtype).masked_fill(torch.ones(7, 9).triu(3).bool(), torch.finfo(dtype).min)
    before = summed_from(torch.zeros(2, 4, 7, 9), query[..., :place], key[..., :place])
    raw = summed_from(before + mask, query[..., place:], key[..., place:])
    expected = scores(exact_input(query), exact_input(key), mask, NO_SHORTCUTS)
    scaled = scaled_scores(exact_input(query), exact_input(key), mask, NO_SHORTCUTS)
    before = summed_from(torch.zeros(2, 4, 7, 9), query[..., :place] / 24**0.5, key[..., :place])
    assert r(raw / 24**0.5, expected) <= 1
    assert r(summed_from(before + mask, query[..., place:] / 24**0.5, key[..., place:]), scaled) <= 1
    assert r((raw - mask) / 24**0.5 + mask.clamp_min(-4000), expected) > 1  # hidden too little


@given(seed=seeds, dtype=dtypes)
def test_scores_of_unseen_rotations_are_within_their_bound(seed: int, dtype: torch.dtype) -> None:
    """If the rotated q and k were not observed, their bounds are added to that of the scores."""
    query, key = randn(seed, 2, 2, 7, 4, 16).to(dtype)
    table, positions = create_sinusoidal_positions(50, 16), torch.arange(7)[None]
    sin, cos = table[positions].chunk(2, dim=-1)
    turned = [apply_rotary_pos_emb(x, sin, cos).transpose(1, 2).float() for x in (query, key)]
    expected = [rope(x, table, positions) for x in (query, key)]
    seen = [Expected(e.value.transpose(1, 2), e.bound.transpose(1, 2), e.dtype) for e in expected]
    tap = turned[0] @ turned[1].transpose(-1, -2) / 4
    assert r(tap, scores(seen[0], seen[1], None, NO_SHORTCUTS)) <= 1


def shifted(s: torch.Tensor) -> torch.Tensor:
    return s - s.amax(-1, keepdim=True)


def fused_exponents(s: torch.Tensor) -> torch.Tensor:
    """Return s·log2(e) − M·log2(e) of float32, with a fused multiply-add emulated in float64."""
    if s.dtype == torch.float64:
        return shifted(s) * LOG2_E
    constant, greatest = torch.tensor(LOG2_E), s.amax(-1, keepdim=True)
    fused = (s.double() * constant.double() - (greatest * constant).double()).float()
    return torch.where(greatest.abs() > 1e6, shifted(s) * constant, fused)  # kernels leave out a row that sees nothing


POWERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exp": lambda s: shifted(s).exp(),
    "exp2": lambda s: (shifted(s) * LOG2_E).exp2(),
    "fused exp2": lambda s: fused_exponents(s).exp2(),
}
WRONG_POWERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "base 2": lambda s: shifted(s).exp2(),
    "constant in bfloat16": lambda s: (shifted(s) * float(torch.tensor(LOG2_E, dtype=torch.bfloat16))).exp2(),
    "constant in float16": lambda s: (shifted(s) * float(torch.tensor(LOG2_E, dtype=torch.float16))).exp2(),
    "constant of five digits": lambda s: (shifted(s) * 1.4427).exp2(),
    "exponents in float16": lambda s: (shifted(s).to(torch.float16).to(s.dtype) * LOG2_E).exp2(),
    "scores times 1.00001": lambda s: (shifted(s) * 1.00001).exp(),
}


def normalized_powers(powers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (powers / powers.sum(-1, keepdim=True)).to(dtype)


def some_scores(seed: int, n: int, spread: float, dtype: torch.dtype) -> torch.Tensor:
    """Return scores of which some are hidden, and one row wholly."""
    given = (randn(seed, 2, 4, 5, n) * spread).to(torch.promote_types(torch.float32, dtype))
    given[..., n // 2 + 1 :] = torch.finfo(torch.float32).min / 4
    given[0, 0, 0] = torch.finfo(torch.float32).min / 4
    return given


@given(
    seed=seeds,
    dtype=dtypes,
    spread=st.floats(0.1, 300.0),
    n=st.sampled_from([1, 8, 300]),
    form=st.sampled_from(["softmax", *POWERS]),
)
def test_softmax_is_within_its_bound(seed: int, dtype: torch.dtype, spread: float, n: int, form: str) -> None:
    given = some_scores(seed, n, spread, dtype)
    tap = given.softmax(-1).to(dtype) if form == "softmax" else normalized_powers(POWERS[form](given), dtype)
    assert r(tap, softmax(given, dtype)) <= 1


@pytest.mark.parametrize("form", WRONG_POWERS)
def test_softmax_with_wrong_powers_exceeds_its_bound(form: str) -> None:
    given = some_scores(0, 8, 3.0, torch.float32)
    assert r(normalized_powers(WRONG_POWERS[form](given), torch.float32), softmax(given, torch.float32)) > 1


@given(seed=seeds, dtype=dtypes, n=st.sampled_from([1, 8, 300]))
def test_mix_is_within_its_bound(seed: int, dtype: torch.dtype, n: int) -> None:
    pattern = (randn(seed, 2, 4, 5, n) * 3).softmax(-1).to(dtype)
    value = randn(seed + 1, 2, 4, n, 16).to(dtype)
    assert r((pattern @ value).transpose(1, 2), mix(pattern, value, NO_SHORTCUTS)) <= 1


@given(
    seed=seeds,
    dtype=dtypes,
    size=st.sampled_from([3e-3, 1.0, 50.0]),
    offset=st.sampled_from([0.0, 30.0]),
    by_hand=st.booleans(),
)
def test_layer_norm_is_within_its_bound(
    seed: int, dtype: torch.dtype, size: float, offset: float, by_hand: bool
) -> None:
    x = (randn(seed, 6, 256) * size + offset).to(dtype)
    gain, bias = (1 + randn(seed + 1, 256) * 0.1).to(dtype), randn(seed + 2, 256).to(dtype)
    wide = x.to(torch.promote_types(torch.float32, dtype))
    centred = wide - wide.mean(-1, keepdim=True)
    sigma = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    tap = (centred / sigma * gain + bias).to(dtype) if by_hand else F.layer_norm(x, (256,), gain, bias, 1e-5)
    assert r(tap, layer_norm(x, gain, bias, 1e-5)) <= 1
    assert r(centred / sigma, normalized(x, 1e-5)) <= 1
    assert r(sigma, scale(x, 1e-5)) <= 1


def test_wrong_eps_exceeds_the_bound_if_the_variance_is_near_it() -> None:
    x, gain, bias = randn(0, 6, 256) * 3e-3, torch.ones(256), torch.zeros(256)
    assert r(F.layer_norm(x, (256,), gain, bias, 1e-6), layer_norm(x, gain, bias, 1e-5)) > 1


@given(seed=seeds, dtype=dtypes)
def test_gelu_new_is_within_its_bound(seed: int, dtype: torch.dtype) -> None:
    x = torch.cat((torch.linspace(-9, 9, 2001), randn(seed, 500) * 3)).to(dtype)
    assert r(NewGELUActivation()(x), gelu_new(x)) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_erf_form_of_gelu_exceeds_the_bound(dtype: torch.dtype) -> None:
    x = torch.linspace(-9, 9, 2001, dtype=dtype)
    assert r(F.gelu(x), gelu_new(x)) > 1


@given(seed=seeds, dtype=dtypes, order=st.permutations([0, 1, 2]))
def test_block_sum_in_any_order_is_within_its_bound(seed: int, dtype: torch.dtype, order: list[int]) -> None:
    terms = [randn(seed + i, 4, 64).to(dtype) for i in range(3)]
    first, second, third = (terms[i] for i in order)
    assert r(first + second + third, block_sum(*terms)) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_cache_is_exact(dtype: torch.dtype) -> None:
    before, new = randn(0, 2, 4, 3, 8).to(dtype), randn(1, 2, 4, 2, 8)
    expected = cached(before, exact_input(new), dtype)
    assert r(torch.cat((before, new.to(dtype)), dim=-2), expected) == 0
    assert r(torch.cat((new.to(dtype), before), dim=-2), expected) == float("inf")


@pytest.mark.parametrize(
    ("stage", "least"),
    [("product", 0.4), ("rope", 0.4), ("softmax", 0.4), ("mix", 0.4), ("layer_norm", 0.4), ("gelu", 0.4)],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bounds_are_not_loose_in_16_bits(stage: str, least: float, dtype: torch.dtype) -> None:
    """The greatest r of correct code is near 1."""
    x, weight = randn(0, 64, 256).to(dtype), (randn(1, 256, 256) * 0.05).to(dtype)
    heads = randn(2, 4, 16, 4, 16).to(dtype)
    table, positions = create_sinusoidal_positions(50, 16).to(dtype), torch.arange(16)[None]
    sin, cos = table[positions].chunk(2, dim=-1)
    given = randn(3, 4, 4, 16, 16) * 3
    found = {
        "product": lambda: product_r(x @ weight.T, x, weight),
        "rope": lambda: r(apply_rotary_pos_emb(heads, sin, cos), rope(heads, table, positions)),
        "softmax": lambda: r(given.softmax(-1).to(dtype), softmax(given, dtype)),
        "mix": lambda: r(
            (given.to(dtype) @ given.to(dtype)).transpose(1, 2), mix(given.to(dtype), given.to(dtype), NO_SHORTCUTS)
        ),
        "layer_norm": lambda: r(
            F.layer_norm(x, (256,), weight[0], weight[1], 1e-5), layer_norm(x, weight[0], weight[1], 1e-5)
        ),
        "gelu": lambda: r(NewGELUActivation()(x * 3), gelu_new(x * 3)),
    }[stage]()
    assert least <= found <= 1
