"""Attention scores under autocast: (q·kᵀ + mask) / √D, of which the product alone is in the low dtype.

Hugging Face casts q and k to float32 against overflow; autocast then rounds them to its dtype, of unit roundoff u. With
q̂ and k̂ so rounded, s = q̂·k̂ᵀ, dh the head size, m the mask (0 in |m| where it hides), a = 2⁻²⁴ and w the unit roundoff
of the dtype to which the mask promotes the product:

    b = R_u(s, γ_{dh+1}(a)(|q̂||k̂|ᵀ + |m|))       the product, rounded to the low dtype
    t = R_w(s + m, b)                             the sum with the mask
    B = R_w(o, (t + 2a(|s + m| + t))/√D)          2a: the rounding of the scale, and of a possible reciprocal

|m| stands in b since a fused kernel may start from the mask. If the mask is in the low dtype too, w = u, and in float16
its lowest value may overflow to −∞ when a score is added: there an infinity is allowed. A q or k that was not observed
after the rotation is off by R(q, β_q) when it is rounded; that adds β|k̂|ᵀ and its like to the error in b. In float64 w
counts twice, since the oracle rounds as well.
"""

from __future__ import annotations

import torch

from cgverify.oracle.arithmetic import UNIT_ROUNDOFF, Expected, bound_after_rounding, cast, gamma
from cgverify.oracle.shortcuts import Shortcuts


def autocast_scores(
    query: Expected, key: Expected, mask: torch.Tensor | None, low: torch.dtype, shortcuts: Shortcuts
) -> Expected:
    """The scores `[batch, heads, seq, keys]`.

    Args:
        query: `[batch, heads, seq, head_dim]`, rotated; its bound is 0 where it was observed.
        key: `[batch, heads, keys, head_dim]`, likewise.
        mask: added to the product, broadcastable to it.
        low: the dtype of autocast.
    """
    q, k = (cast(cast(operand, torch.float32), low) for operand in (query, key))
    head_dim = q.value.shape[-1]
    scale = head_dim**0.5
    a, summing = UNIT_ROUNDOFF[torch.float32], shortcuts.sum_unit(low)
    magnitudes = q.value.abs() @ k.value.abs().mT
    inherited = q.bound @ k.value.abs().mT + (q.value.abs() + q.bound) @ k.bound.mT
    product = q.value @ k.value.mT
    dtype, summed = low, product
    if mask is not None:
        dtype, summed = torch.promote_types(low, mask.dtype), product + mask.to(torch.float64)
        magnitudes = magnitudes + torch.where(mask > torch.finfo(mask.dtype).min, mask, 0).to(torch.float64).abs()
    error = bound_after_rounding(product, gamma(head_dim + 1, summing) * magnitudes + inherited, low)
    largest = torch.finfo(dtype).max
    overflows = summed.abs() + error > largest * (1 + UNIT_ROUNDOFF[dtype] / 2)
    error = both_rounded(summed, error, dtype)
    value = summed / scale
    bound = both_rounded(value, (error + 2 * a * (summed.abs() + error)) / scale, dtype)
    return Expected(value, bound.masked_fill(overflows, largest), dtype)


def both_rounded(value: torch.Tensor, bound: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """R(o, b), twice in float64, which the oracle rounds to as well."""
    once = bound_after_rounding(value, bound, dtype)
    return bound_after_rounding(value, once, dtype) if dtype == torch.float64 else once
