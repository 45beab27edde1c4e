"""Attention in one kernel: z = softmax(q·kᵀ · D^−½ + mask) · v, of which neither scores nor pattern can be seen.

The stages `scores`, `softmax` and `mix` are judged as one, and their bounds compose. With dh the head size, n keys, a
the unit roundoff of the accumulator, u that of the operands' dtype, η its smallest subnormal, x = q·kᵀ/√D, m the mask
(0 in the first |m| if it absorbs x) and s = x + m, each score is off by at most

    b = γ_{dh+4}(a)(|q||k|ᵀ/√D + |m|) + 3a|x| + min(a|s|, |x|)        min: the sum is no farther from s than m is

and by 0 if m absorbs x in float32. Two of γ's roundings scale q and k by D^−¼ each before the product. A kernel that
goes through the keys in blocks of 16 or more multiplies what it has by exp(M_old − M_new) for each block, so with M the
greatest visible score, M₀ the smallest, p the exact pattern and d_j = b_j + 3a|s_j − M|:

    L = d + Σ_j p_j expm1(d_j) + 2 min(γ_n, 16a√n) + 3a(M − M₀) + (3⌈n/16⌉ + 8)a
    B = R(z, Σ_j p_j|v_j|(expm1(L_j) + u') + η'Σ_j|v_j| + 2a|z| + nη)

u' = u and η' = η if the operands have 16 bits, in which the pattern is rounded before it meets v; otherwise both are 0.
Sources: the bounds of the three stages (`scaled_scores.py`, `softmax.py`, `mix.py`); Dao et al. 2022, *FlashAttention*,
algorithm 1, for the order of operations. Kernels take powers of 2; see the table in `softmax.py` for 3a.
"""

from __future__ import annotations

import math

import torch

from cgverify.oracle.arithmetic import (
    HALVES,
    SMALLEST_SUBNORMAL,
    UNIT_ROUNDOFF,
    Expected,
    accumulator,
    bound_after_rounding,
    bounded_output,
    gamma,
)
from cgverify.oracle.scores import mask_magnitude, multiply
from cgverify.oracle.shortcuts import Shortcuts
from cgverify.oracle.softmax import EXPONENT_ROUNDINGS

BLOCK = 16
"""The fewest keys that a kernel goes through between two rescalings."""


def fused_attention(
    query: Expected, key: Expected, value: torch.Tensor, mask: torch.Tensor | None, shortcuts: Shortcuts
) -> Expected:
    """Return z `[batch, seq, heads, head_dim]`.

    Args:
        query: `[batch, heads, seq, head_dim]`, rotated; its bound is 0 if it was observed.
        key: `[batch, heads, keys, head_dim]`; its bound is 0 if it was observed.
        value: `[batch, heads, keys, head_dim]`.
        mask: added to the scaled product, broadcastable to `[batch, heads, seq, keys]`.
        shortcuts: what products may leave out.
    """
    a, n = UNIT_ROUNDOFF[accumulator(value.dtype)], key.value.shape[-2]
    scores, error = _scores(query, key, mask, a, shortcuts)
    pattern = scores.softmax(-1)
    seen = pattern > 0
    greatest = scores.amax(-1, keepdim=True)
    smallest = torch.where(seen, scores, torch.inf).amin(-1, keepdim=True)
    exponent = error + EXPONENT_ROUNDINGS * a * (scores - greatest).abs()
    denominator = torch.where(seen, pattern * exponent.expm1(), 0.0).sum(-1, keepdim=True)
    sums = 2 * min(gamma(n, a), 16 * a * n**0.5) + shortcuts.term_error(value.dtype)
    blocks = EXPONENT_ROUNDINGS * a * (greatest - smallest) + (3 * math.ceil(n / BLOCK) + 8) * a
    relative = (exponent + denominator + sums + blocks).expm1()
    unit, subnormal = (
        (UNIT_ROUNDOFF[value.dtype], SMALLEST_SUBNORMAL[value.dtype]) if value.dtype in HALVES else (0.0, 0.0)
    )
    v = value.to(torch.float64)
    z = pattern @ v
    bound = torch.where(seen, pattern * (relative + unit), 0.0) @ v.abs() + subnormal * v.abs().sum(-2, keepdim=True)
    bound = bound + 2 * a * z.abs() + n * SMALLEST_SUBNORMAL[accumulator(value.dtype)]
    z, bound = z.transpose(1, 2), bound.transpose(1, 2)
    return bounded_output(z, bound_after_rounding(z, bound, value.dtype), value.dtype)


def _scores(
    query: Expected, key: Expected, mask: torch.Tensor | None, a: float, shortcuts: Shortcuts
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return s and b, `[batch, heads, seq, keys]`."""
    head_dim = query.value.shape[-1]
    product, magnitudes, inherited = (part / head_dim**0.5 for part in multiply(query, key))
    counted = mask_magnitude(mask, magnitudes + inherited, a)
    of_terms = gamma(head_dim + 4, a) + shortcuts.term_error(query.dtype)
    error = of_terms * (magnitudes + counted) + inherited + 3 * a * product.abs()
    if mask is None:
        return product, error
    wide = mask.to(torch.float64)
    summed = torch.minimum(a * (product + wide).abs(), product.abs() + error)
    absorbed = (counted == 0) & (wide != 0)
    return product + wide, torch.where(absorbed, 0.0, error + summed)
