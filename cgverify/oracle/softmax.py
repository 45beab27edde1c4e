"""Softmax over the keys, cast to the dtype of the values.

With M = max s, d_j = 3a|s_j − M| the error of each exponent, p the exact pattern and n keys:

    L = d_i + Σ_j p_j expm1(d_j) + min(γ_n, 16a√n) + 8a          B = R(p, p·expm1(L)) + 2⁻¹²⁶

d_i is the numerator's error and the sum the denominator's, then come the roundings of the summation, and 8a for two
exponentials, the division and the remaining operations. Below 2⁻¹²⁶ float32 is subnormal and kernels flush to zero.

An error ε of an exponent is a factor e^ε, so what counts is the exponent's absolute error, in each form:

| form | roundings of the exponent | error |
|---|---|---|
| exp(s − M) | the difference | a|s − M| |
| exp2((s − M)·c) | the difference, the constant c = log₂e, the product | 3a|s − M| |
| exp2(s·c − M·c), a fused multiply-add | c, the sum; that of M·c scales every power, and cancels | 2a|s − M| |

With M − s = 20 in float32 the second is up to 20·3·2⁻²⁴ = 3.6·10⁻⁶ off, relative to the power.
Sources: Dao, *FlashAttention-2* (2023), for the fused form; the rest is Higham's standard model of rounding.
"""

from __future__ import annotations

import torch

from cgverify.oracle.arithmetic import UNIT_ROUNDOFF, Expected, accumulator, bound_after_rounding, bounded_output, gamma

EXPONENT_ROUNDINGS = 3
"""The most roundings of an exponent, each relative to s − M: the second form of the table above."""


def softmax(scores: torch.Tensor, dtype: torch.dtype) -> Expected:
    """Return the pattern, in `dtype`, of scores `[batch, heads, seq, keys]` as the softmax received them."""
    a = UNIT_ROUNDOFF[accumulator(scores.dtype)]
    n = scores.shape[-1]
    wide = scores.to(torch.float64)
    pattern = wide.softmax(-1)
    exponent = EXPONENT_ROUNDINGS * a * (wide - wide.amax(-1, keepdim=True)).abs()
    # A masked entry's exponent is enormous and its p is 0: the product is 0, not 0·∞.
    denominator = torch.where(pattern > 0, pattern * exponent.expm1(), 0.0).sum(-1, keepdim=True)
    relative = exponent + denominator + min(gamma(n, a), 16 * a * n**0.5) + 8 * a
    bound = torch.where(pattern > 0, pattern * relative.expm1(), 0.0)
    return bounded_output(pattern, bound_after_rounding(pattern, bound, dtype) + 2.0**-126, dtype)
