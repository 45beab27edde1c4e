"""Attention head by head, as TransformerLens's flags compute it: the output per head, and each head's own input.

**Results.** r_h = z_h·W_hᵀ with W_h head h's columns of the output weight: a product of head_dim terms.

**Their sum.** o = Σ_h r_h over H heads, B = R(o, min(γ_H(a), 16a√H)·Σ|r_h|), as for a mix with all p = 1. If the r_h
were not observed, each has its own bound B_h, which the roundings of the sum enlarge: the error becomes
Σ B_h + min(…)·Σ(|r_h| + B_h). It is then unknown whether heads were summed at all, so the bound is the larger one of
this and of one product over all heads.

**Projections.** q_h = x_h·W_hᵀ with W_h head h's rows of the projection's weight, and x_h head h's input. A block
normalizes each x_h without a hook in between: the layer norm's bound β adds β|W_h|ᵀ.
"""

from __future__ import annotations

import torch

from cgverify.oracle.arithmetic import UNIT_ROUNDOFF, Expected, accumulator, gamma, rounded_output
from cgverify.oracle.product import product
from cgverify.oracle.shortcuts import Shortcuts


def head_results(z: Expected, weight: torch.Tensor, shortcuts: Shortcuts) -> Expected:
    """Return r, `[batch, seq, heads, d_model]`.

    Args:
        z: `[batch, seq, heads, head_dim]`.
        weight: of the output projection, `[d_model, heads * head_dim]`.
    """
    heads = z.value.shape[-2]
    return _stacked([product(_head(z, h), part, None, shortcuts) for h, part in enumerate(weight.chunk(heads, dim=1))])


def head_sum(results: Expected) -> Expected:
    """Return o, `[batch, seq, d_model]`, of results `[batch, seq, heads, d_model]` with or without a bound."""
    heads = results.value.shape[-2]
    a = UNIT_ROUNDOFF[accumulator(results.dtype)]
    magnitude = (results.value.abs() + results.bound).sum(-2)
    error = results.bound.sum(-2) + min(gamma(heads, a), 16 * a * heads**0.5) * magnitude
    return rounded_output(results.value.sum(-2), error, results.dtype)


def unseen_head_sum(z: Expected, weight: torch.Tensor, shortcuts: Shortcuts) -> Expected:
    """Return o from z if no results were observed. Arguments as for `head_results`."""
    summed = head_sum(head_results(z, weight, shortcuts))
    flat = Expected(z.value.flatten(-2), z.bound.flatten(-2), z.dtype)
    return Expected(summed.value, torch.maximum(summed.bound, product(flat, weight, None, shortcuts).bound), z.dtype)


def head_projections(inputs: Expected, weight: torch.Tensor, shortcuts: Shortcuts) -> Expected:
    """Return q, k or v, `[batch, seq, heads, head_dim]`.

    Args:
        inputs: those of each head, `[batch, seq, heads, d_model]`.
        weight: of the projection, `[heads * head_dim, d_model]`.
    """
    heads = inputs.value.shape[-2]
    return _stacked([product(_head(inputs, h), part, None, shortcuts) for h, part in enumerate(weight.chunk(heads))])


def _head(x: Expected, head: int) -> Expected:
    return Expected(x.value[..., head, :], x.bound[..., head, :], x.dtype)


def _stacked(heads: list[Expected]) -> Expected:
    value = torch.stack([head.value for head in heads], dim=-2)
    return Expected(value, torch.stack([head.bound for head in heads], dim=-2), heads[0].dtype)
