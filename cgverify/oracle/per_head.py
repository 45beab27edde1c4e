"""Attention head by head, as TransformerLens's flags have it: the output per head, and each head's own input.

**Results.** r_h = z_h·W_hᵀ with W_h the columns of the output weight that head h meets: a product of head_dim terms.

**Their sum.** o = Σ_h r_h over H heads, B = R(o, min(γ_H(a), 16a√H)·Σ|r_h|), as for a mix with all p = 1. Where the r_h
were not seen, each comes with its own bound B_h, which the roundings of the sum enlarge: Σ B_h + min(…)·Σ(|r_h| + B_h)
takes the place of the error. Nobody can then tell whether heads were summed at all, so the bound of one product
over all heads holds as well: the larger of the two.

**Projections.** q_h = x_h·W_hᵀ with W_h the rows of the projection's weight that make head h, and x_h the input of
head h. A block normalizes each x_h and shows nothing in between: the layer norm's bound β adds β|W_h|ᵀ.
"""

from __future__ import annotations

import torch

from cgverify.oracle.arithmetic import UNIT_ROUNDOFF, Expected, accumulator, bound_after_rounding, bounded_output, gamma
from cgverify.oracle.product import product
from cgverify.oracle.shortcuts import Shortcuts


def head_results(z: Expected, weight: torch.Tensor, shortcuts: Shortcuts) -> Expected:
    """r, `[batch, seq, heads, d_model]`.

    Args:
        z: `[batch, seq, heads, head_dim]`.
        weight: of the output projection, `[d_model, heads * head_dim]`.
    """
    heads = z.value.shape[-2]
    return _stacked([product(_head(z, h), part, None, shortcuts) for h, part in enumerate(weight.chunk(heads, dim=1))])


def head_sum(results: Expected) -> Expected:
    """o, `[batch, seq, d_model]`, of results `[batch, seq, heads, d_model]` with or without a bound of their own."""
    heads = results.value.shape[-2]
    a = UNIT_ROUNDOFF[accumulator(results.dtype)]
    magnitude = (results.value.abs() + results.bound).sum(-2)
    error = results.bound.sum(-2) + min(gamma(heads, a), 16 * a * heads**0.5) * magnitude
    value = results.value.sum(-2)
    return bounded_output(value, bound_after_rounding(value, error, results.dtype), results.dtype)


def unseen_head_sum(z: Expected, weight: torch.Tensor, shortcuts: Shortcuts) -> Expected:
    """o from z, where no results were seen on the way; arguments as for `head_results`."""
    summed = head_sum(head_results(z, weight, shortcuts))
    flat = Expected(z.value.flatten(-2), z.bound.flatten(-2), z.dtype)
    return Expected(summed.value, torch.maximum(summed.bound, product(flat, weight, None, shortcuts).bound), z.dtype)


def head_projections(inputs: Expected, weight: torch.Tensor, shortcuts: Shortcuts) -> Expected:
    """q, k or v, `[batch, seq, heads, head_dim]`.

    Args:
        inputs: each head's own, `[batch, seq, heads, d_model]`.
        weight: of the projection, `[heads * head_dim, d_model]`.
    """
    heads = inputs.value.shape[-2]
    return _stacked([product(_head(inputs, h), part, None, shortcuts) for h, part in enumerate(weight.chunk(heads))])


def _head(x: Expected, head: int) -> Expected:
    return Expected(x.value[..., head, :], x.bound[..., head, :], x.dtype)


def _stacked(heads: list[Expected]) -> Expected:
    value = torch.stack([head.value for head in heads], dim=-2)
    return Expected(value, torch.stack([head.bound for head in heads], dim=-2), heads[0].dtype)
