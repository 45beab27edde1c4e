"""The block's sum, in any order: o = attn + mlp + residual, B = γ₂(u)(|attn| + |mlp| + |residual|).

u is that of the promoted dtype. Under autocast attn and mlp are in its dtype, of unit roundoff v, and the residual is
wider. Their sum may be taken first and rounded to v, which adds v|attn + mlp|(1 + γ₂(u)).
"""

from __future__ import annotations

import torch

from cgverify.oracle.arithmetic import SMALLEST_SUBNORMAL, UNIT_ROUNDOFF, Expected, bounded_output, gamma


def block_sum(attn: torch.Tensor, mlp: torch.Tensor, residual: torch.Tensor) -> Expected:
    """Return the sum of three tensors `[batch, seq, d_model]` in the dtype that they promote to."""
    branch = torch.promote_types(attn.dtype, mlp.dtype)
    dtype = torch.promote_types(branch, residual.dtype)
    terms = [term.to(torch.float64) for term in (attn, mlp, residual)]
    magnitude = sum((term.abs() for term in terms[1:]), start=terms[0].abs())
    growth = gamma(2, UNIT_ROUNDOFF[dtype])
    bound = growth * magnitude
    if branch != dtype:
        bound = bound + UNIT_ROUNDOFF[branch] * (terms[0] + terms[1]).abs() * (1 + growth) + SMALLEST_SUBNORMAL[branch]
    return bounded_output(sum(terms[1:], start=terms[0]), bound, dtype)
