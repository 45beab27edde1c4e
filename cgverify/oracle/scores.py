"""Attention scores, (q·kᵀ + mask) / √D, without and with autocast.

Without autocast they are in float32 until a wider mask promotes them. With dh the head size, m the mask (0 in |m|
where it absorbs the product), a = 2⁻²⁴ and o the exact value:

    B = [ (γ_{dh+2}(a)(|q||k|ᵀ + |m|) + a|qk + m|)/scale + 3a|o| ](1 + 4a) + (dh + 3)η

Two of γ's roundings are casts of float64 q and k to float32. 3a covers the rounding of the scale, of a possible
reciprocal, and of the division. |m| is added to the product because a fused kernel may start from the mask: the sum
has dh + 1 terms in any order. If a|m| > 4|q||k|ᵀ, each partial sum of the product is less than half the distance of m
to the next float, so that every order gives m itself, and only a|qk + m| is left. The lowest float32 and bfloat16 do
that. The lowest float16 does not: with dh = 24 its sums may be off by γ₂₆(a)·65504 = 0.1, where the key is hidden
either way.

If q or k was not observed after the rotation, the rotation's own bounds β_q, β_k add (β_q|k|ᵀ + |q|β_kᵀ +
β_q β_kᵀ)/scale: two stages are judged as one. If operands of float32 products may be rounded, 2τ + τ² is added to γ
(`cgverify/oracle/shortcuts.py`).

Under autocast only the product is in the low dtype. Hugging Face casts q and k to float32 against overflow, and
autocast then rounds them to its dtype, of unit roundoff u. With q̂ and k̂ so rounded, s = q̂·k̂ᵀ, and w the unit roundoff
of the dtype to which the mask promotes the product:

    b = R_u(s, γ_{dh+1}(a)(|q̂||k̂|ᵀ + |m|))       the product, rounded to the low dtype
    t = R_w(s + m, b)                             the sum with the mask
    B = R_w(o, (t + 2a(|s + m| + t))/√D)          2a: the rounding of the scale, and of a possible reciprocal

If the mask is in the low dtype too, w = u, and in float16 its lowest value may overflow to −∞ when a score is added:
there an infinity is allowed. A q or k that was not observed after the rotation is off by R(q, β_q) when it is rounded,
which adds the inherited error above to b. In float64 w counts twice, since the oracle rounds as well.
"""

from __future__ import annotations

import torch

from cgverify.oracle.arithmetic import (
    SMALLEST_SUBNORMAL,
    UNIT_ROUNDOFF,
    Expected,
    bound_after_rounding,
    bounded_output,
    cast,
    gamma,
)
from cgverify.oracle.shortcuts import Shortcuts


def scores(query: Expected, key: Expected, mask: torch.Tensor | None, shortcuts: Shortcuts) -> Expected:
    """Return the scores `[batch, heads, seq, keys]`.

    Args:
        query: `[batch, heads, seq, head_dim]`, rotated; its bound is 0 if it was observed.
        key: `[batch, heads, keys, head_dim]`, rotated, as it was multiplied; its bound is 0 if it was observed.
        mask: added to the product, broadcastable to it.
    """
    head_dim = query.value.shape[-1]
    scale = head_dim**0.5
    a, eta = UNIT_ROUNDOFF[torch.float32], SMALLEST_SUBNORMAL[torch.float32]
    product, magnitudes, inherited = multiply(query, key)
    magnitudes = magnitudes + mask_magnitude(mask, magnitudes, a)
    masked, dtype = add_mask(product, mask, torch.float32)
    value = masked / scale
    of_terms = gamma(head_dim + 2, a) + shortcuts.term_error(torch.float32)
    bound = (of_terms * magnitudes + inherited + a * masked.abs()) / scale + 3 * a * value.abs()
    return bounded_output(value, bound * (1 + 4 * a) + (head_dim + 3) * eta, dtype)


def autocast_scores(
    query: Expected, key: Expected, mask: torch.Tensor | None, low: torch.dtype, shortcuts: Shortcuts
) -> Expected:
    """Return the scores under autocast to `low`. The other arguments are those of `scores`."""
    q, k = (cast(cast(operand, torch.float32), low) for operand in (query, key))
    head_dim = q.value.shape[-1]
    scale = head_dim**0.5
    a, summing = UNIT_ROUNDOFF[torch.float32], shortcuts.sum_unit(low)
    product, magnitudes, inherited = multiply(q, k)
    magnitudes = magnitudes + mask_magnitude(mask, magnitudes, a)
    masked, dtype = add_mask(product, mask, low)
    error = bound_after_rounding(product, gamma(head_dim + 1, summing) * magnitudes + inherited, low)
    largest = torch.finfo(dtype).max
    overflows = masked.abs() + error > largest * (1 + UNIT_ROUNDOFF[dtype] / 2)
    error = both_rounded(masked, error, dtype)
    value = masked / scale
    bound = both_rounded(value, (error + 2 * a * (masked.abs() + error)) / scale, dtype)
    return Expected(value, bound.masked_fill(overflows, largest), dtype)


def multiply(query: Expected, key: Expected) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return q·kᵀ, |q||k|ᵀ, and the error that the bounds of q and k add."""
    q, k = query.value.abs(), key.value.abs().mT
    return query.value @ key.value.mT, q @ k, query.bound @ k + (q + query.bound) @ key.bound.mT


def mask_magnitude(mask: torch.Tensor | None, magnitudes: torch.Tensor, a: float) -> torch.Tensor:
    """Return |m|, and 0 where m absorbs a product of these `magnitudes`, Σ|q_i k_i|, in any order of summation."""
    if mask is None:
        return torch.zeros((), dtype=torch.float64)
    m = mask.to(torch.float64).abs()
    return torch.where(a * m > 4 * magnitudes, 0.0, m)


def add_mask(product: torch.Tensor, mask: torch.Tensor | None, dtype: torch.dtype) -> tuple[torch.Tensor, torch.dtype]:
    """Return the product + m, and the dtype that the mask promotes its `dtype` to."""
    if mask is None:
        return product, dtype
    return product + mask.to(torch.float64), torch.promote_types(dtype, mask.dtype)


def both_rounded(value: torch.Tensor, bound: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """R(o, b), applied twice in float64, which the oracle rounds to as well."""
    once = bound_after_rounding(value, bound, dtype)
    return bound_after_rounding(value, once, dtype) if dtype == torch.float64 else once
