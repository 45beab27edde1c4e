"""Bounds that only some cases use, none of them loose: dropout, attention head by head, layer norm after a hook."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from cgverify.oracle.arithmetic import Expected, exact_input
from cgverify.oracle.dropout import dropout
from cgverify.oracle.layer_norm import affine, layer_norm, normalized_by
from cgverify.oracle.per_head import head_projections, head_results, head_sum, unseen_head_sum
from cgverify.oracle.product import product, products
from cgverify.oracle.shortcuts import NO_SHORTCUTS
from cgverify.oracle.softmax import softmax
from cgverify.verification.metrics import assess

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
HALVES = [torch.bfloat16, torch.float16]


def r_of(tap: torch.Tensor, expected: Expected) -> float:
    assert tap.shape == expected.value.shape
    assert tap.dtype == expected.dtype
    return assess(tap, expected)[0].value


def normal(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# --- dropout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.77])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_of_torch_is_within_its_bound(dtype: torch.dtype, p: float) -> None:
    x = normal(64, 1000, dtype=dtype)
    torch.manual_seed(1)
    dropped = functional.dropout(x, p)
    assert r_of(dropped, dropout(exact_input(x), dropped != 0, p)) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_bound_of_dropout_is_not_loose(dtype: torch.dtype) -> None:
    x = normal(64, 1000, dtype=dtype)
    ratios = []
    for p in torch.linspace(0.05, 0.95, 37).tolist():
        dropped = functional.dropout(x, p)
        ratios.append(r_of(dropped, dropout(exact_input(x), dropped != 0, p)))
    assert 0.4 <= max(ratios) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_choice_of_kept_elements_exceeds_the_bound(dtype: torch.dtype) -> None:
    x = normal(50, 50, dtype=dtype)
    dropped = functional.dropout(x, 0.5)
    kept = dropped != 0
    for wrong in (functional.dropout(x, 0.5), x, x / 0.5, torch.zeros_like(x)):
        assert r_of(wrong, dropout(exact_input(x), kept, 0.5)) > 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_other_scale_of_dropout_exceeds_the_bound(dtype: torch.dtype) -> None:
    x = normal(50, 50, dtype=dtype)
    dropped = functional.dropout(x, 0.1)
    expected = dropout(exact_input(x), dropped != 0, 0.1)
    for factor in (0.9, 0.99, 1 + 1e-6):
        assert r_of(dropped * factor, expected) > 1


def test_kept_element_that_underflows_is_not_a_dropped_one() -> None:
    """The smallest entries of a softmax in float16 may round up or down."""
    scores = torch.tensor([[0.0, -17.3]])
    expected = dropout(softmax(scores, torch.float16), torch.tensor([[True, False]]), 0.1)
    for smallest in (0.0, 6e-8):
        assert r_of(torch.tensor([[1 / 0.9, smallest]], dtype=torch.float16), expected) <= 1
    assert r_of(torch.tensor([[1 / 0.9, 6e-7]], dtype=torch.float16), expected) > 1


# --- products ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_product_equals_its_blocks(dtype: torch.dtype) -> None:
    x, weight, bias = normal(2, 3, 96, dtype=dtype), normal(40, 96, dtype=dtype), normal(40, dtype=dtype)
    whole = product(exact_input(x), weight, bias, NO_SHORTCUTS)
    ((_, (block,)),) = products([x], weight, bias, NO_SHORTCUTS)
    assert torch.equal(whole.value.flatten(0, 1), block.value)
    assert torch.equal(whole.bound.flatten(0, 1), block.bound)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_product_of_an_unseen_input_is_within_its_bound(dtype: torch.dtype) -> None:
    """Layer norm and projection are judged as one stage."""
    x, weight = normal(2, 5, 512, dtype=dtype), (normal(64, 512, dtype=torch.float32, seed=1) / 20).to(dtype)
    gain, bias = normal(512, dtype=dtype, seed=2), normal(512, dtype=dtype, seed=3)
    y = functional.linear(functional.layer_norm(x, (512,), gain, bias, 1e-5), weight)
    merged = product(layer_norm(x, gain, bias, 1e-5), weight, None, NO_SHORTCUTS)
    assert r_of(y, merged) <= 1
    without_bias = functional.linear(functional.layer_norm(x, (512,), gain, None, 1e-5), weight)
    assert r_of(without_bias, merged) > 1


# --- head by head -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=DTYPES, ids=str)
def heads(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    """Return z `[batch, seq, heads, head_dim]`, and an output weight `[d_model, heads * head_dim]`."""
    dtype: torch.dtype = request.param
    return normal(2, 5, 16, 64, dtype=dtype), (normal(1024, 1024, dtype=torch.float32, seed=1) / 32).to(dtype)


def results_of(z: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bshd,mhd->bshm", z, weight.unflatten(1, (z.shape[2], -1)))


def test_results_per_head_and_their_sum_are_within_their_bounds(heads: tuple[torch.Tensor, torch.Tensor]) -> None:
    z, weight = heads
    results = results_of(z, weight)
    summed = results.sum(-2)
    assert r_of(results, head_results(exact_input(z), weight, NO_SHORTCUTS)) <= 1
    for variant in (summed, results.flip(-2).sum(-2), results.to(torch.float64).sum(-2).to(z.dtype)):
        assert r_of(variant, head_sum(exact_input(results))) <= 1
    merged = unseen_head_sum(exact_input(z), weight, NO_SHORTCUTS)
    assert r_of(summed, merged) <= 1
    assert r_of(functional.linear(z.flatten(-2), weight), merged) <= 1


@pytest.mark.parametrize("dtype", HALVES)
def test_bounds_per_head_are_not_loose_in_16_bits(dtype: torch.dtype) -> None:
    z, weight = normal(2, 5, 16, 64, dtype=dtype), (normal(1024, 1024, dtype=torch.float32, seed=1) / 32).to(dtype)
    results = results_of(z, weight)
    assert r_of(results, head_results(exact_input(z), weight, NO_SHORTCUTS)) > 0.4
    assert r_of(results.sum(-2), head_sum(exact_input(results))) > 0.4


def test_wrong_results_per_head_exceed_their_bounds(heads: tuple[torch.Tensor, torch.Tensor]) -> None:
    z, weight = heads
    results = results_of(z, weight)
    expected = head_results(exact_input(z), weight, NO_SHORTCUTS)
    assert r_of(results.flip(-2), expected) > 1
    assert r_of(results_of(z, weight.unflatten(1, (64, 16)).mT.flatten(1)), expected) > 1
    assert r_of(results[:, :, 1:].sum(-2), head_sum(exact_input(results))) > 1
    assert r_of(results[:, :, 1:].sum(-2), unseen_head_sum(exact_input(z), weight, NO_SHORTCUTS)) > 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_projections_per_head_are_within_their_bound(dtype: torch.dtype) -> None:
    inputs, weight = normal(2, 5, 4, 128, dtype=dtype), normal(128, 128, dtype=dtype, seed=1)
    projected = torch.einsum("bshm,hdm->bshd", inputs, weight.unflatten(0, (4, -1)))
    expected = head_projections(exact_input(inputs), weight, NO_SHORTCUTS)
    assert r_of(projected, expected) <= 1
    neighbours = torch.einsum("bshm,hdm->bshd", inputs.roll(1, 2), weight.unflatten(0, (4, -1)))
    assert r_of(neighbours, expected) > 1


# --- layer norm after a hook ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_from_a_given_scale_is_within_its_bound(dtype: torch.dtype) -> None:
    x, scale = normal(2, 5, 256, dtype=dtype) + 3, normal(2, 5, 1, dtype=dtype, seed=1)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    gain, bias = normal(256, dtype=dtype, seed=2), normal(256, dtype=dtype, seed=3)
    scale = scale.to(wide)
    x_hat = (x.to(wide) - x.to(wide).mean(-1, keepdim=True)) / scale
    y = (x_hat * gain + bias).to(dtype)
    seen, unseen = exact_input(x_hat), normalized_by(x, scale)
    assert r_of(x_hat, unseen) <= 1
    assert r_of(y, affine(seen, gain, bias, dtype)) <= 1
    assert r_of(y, affine(unseen, gain, bias, dtype)) <= 1
    norm = nn.LayerNorm(256, dtype=dtype)
    norm.weight.data, norm.bias.data = gain, bias
    assert r_of(norm(x).detach(), affine(unseen, gain, bias, dtype)) > 1
    assert r_of((x_hat * gain).to(dtype), affine(seen, gain, bias, dtype)) > 1
