"""The block's sum, in any order: o = attn + mlp + residual, B = γ₂(u)(|attn| + |mlp| + |residual|)."""

from __future__ import annotations

import torch

from cgverify.oracle.arithmetic import UNIT_ROUNDOFF, Expected, expected, gamma


def block_sum(attn: torch.Tensor, mlp: torch.Tensor, residual: torch.Tensor) -> Expected:
    """Three tensors `[batch, seq, d_model]` of one dtype, which is the result's."""
    terms = [term.to(torch.float64) for term in (attn, mlp, residual)]
    magnitude = sum((term.abs() for term in terms[1:]), start=terms[0].abs())
    bound = gamma(2, UNIT_ROUNDOFF[residual.dtype]) * magnitude
    return expected(sum(terms[1:], start=terms[0]), bound, residual.dtype)
