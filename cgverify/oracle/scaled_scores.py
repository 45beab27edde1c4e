"""Attention scores that are scaled before the mask, q·kᵀ · D^−½ + mask, without and with autocast.

Without autocast they are in float32 until a wider mask promotes them. With dh the head size, s = q·kᵀ/√D, m the mask
(0 in |m| where it absorbs the product), a = 2⁻²⁴ and o = s + m:

    B = [ γ_{dh+2}(a)(|q||k|ᵀ/√D + |m|) + 3a|s| + a|o| ](1 + 4a) + (dh + 3)η

3a covers the rounding of the scale, of a possible √D to divide by, and of the product with it; a|o| is the sum with the
mask. With autocast to a dtype of unit roundoff u, s = q̂·k̂ᵀ of the rounded operands, and w the unit roundoff of the
dtype to which the mask promotes the product:

    b = R_u(s, γ_{dh+1}(a)(|q̂||k̂|ᵀ + √D|m|))     the product, rounded to the low dtype
    c = R_u(s/√D, (b + 2a(|s| + b))/√D)           the scaled product; 2a: the scale, and a possible √D to divide by
    B = R_w(o, c)                                 the sum with the mask

The rest is as in `cgverify/oracle/scores.py`.
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
from cgverify.oracle.scores import add_mask, both_rounded, mask_magnitude, multiply
from cgverify.oracle.shortcuts import Shortcuts


def scaled_scores(query: Expected, key: Expected, mask: torch.Tensor | None, shortcuts: Shortcuts) -> Expected:
    """Return the scores. The arguments are those of `cgverify.oracle.scores.scores`."""
    head_dim = query.value.shape[-1]
    scale = head_dim**-0.5
    a, eta = UNIT_ROUNDOFF[torch.float32], SMALLEST_SUBNORMAL[torch.float32]
    product, magnitudes, inherited = multiply(query, key)
    scaled = product * scale
    value, dtype = add_mask(scaled, mask, torch.float32)
    of_terms = gamma(head_dim + 2, a) + shortcuts.term_error(torch.float32)
    magnitudes = magnitudes * scale
    magnitudes = magnitudes + mask_magnitude(mask, magnitudes, a)
    bound = of_terms * magnitudes + inherited * scale + 3 * a * scaled.abs() + a * value.abs()
    return bounded_output(value, bound * (1 + 4 * a) + (head_dim + 3) * eta, dtype)


def autocast_scaled_scores(
    query: Expected, key: Expected, mask: torch.Tensor | None, low: torch.dtype, shortcuts: Shortcuts
) -> Expected:
    """Return the scores under autocast to `low`. The other arguments are those of `cgverify.oracle.scores.scores`."""
    q, k = (cast(cast(operand, torch.float32), low) for operand in (query, key))
    head_dim = q.value.shape[-1]
    scale = head_dim**-0.5
    a, summing = UNIT_ROUNDOFF[torch.float32], shortcuts.sum_unit(low)
    product, magnitudes, inherited = multiply(q, k)
    scaled = product * scale
    value, dtype = add_mask(scaled, mask, low)
    magnitudes = magnitudes + mask_magnitude(mask, magnitudes * scale, a) / scale
    error = bound_after_rounding(product, gamma(head_dim + 1, summing) * magnitudes + inherited, low)
    error = bound_after_rounding(scaled, (error + 2 * a * (product.abs() + error)) * scale, low)
    largest = torch.finfo(dtype).max
    overflows = value.abs() + error > largest * (1 + UNIT_ROUNDOFF[dtype] / 2)
    return Expected(value, both_rounded(value, error, dtype).masked_fill(overflows, largest), dtype)
