"""Attention scores, (q·kᵀ + mask) / √D, in float32 until a wider mask promotes them.

With dh the head size, m the mask (0 in the first |m| where it hides), a = 2⁻²⁴ and o the exact value:

    B = [ (γ_{dh+2}(a)(|q||k|ᵀ + |m|) + a|qk + m|)/scale + 3a|o| ](1 + 4a) + (dh + 3)η

Two of γ's roundings are casts of float64 q and k to float32; 3a is the rounding of the scale, of a possible
reciprocal, and of the division; |m| stands with the product since a fused kernel may start from the mask. Where q or k
was not observed after the rotation, the rotation's own bounds β_q, β_k add (β_q|k|ᵀ + |q|β_kᵀ + β_q β_kᵀ)/scale: two
stages judged as one.

Where operands of float32 products may be rounded, 2τ + τ² joins γ (`cgverify/oracle/shortcuts.py`).
"""

from __future__ import annotations

import torch

from cgverify.oracle.arithmetic import SMALLEST_SUBNORMAL, UNIT_ROUNDOFF, Expected, bounded_output, gamma
from cgverify.oracle.shortcuts import Shortcuts


def scores(query: Expected, key: Expected, mask: torch.Tensor | None, shortcuts: Shortcuts) -> Expected:
    """The scores `[batch, heads, seq, keys]`.

    Args:
        query: `[batch, heads, seq, head_dim]`, rotated; its bound is 0 where it was observed.
        key: `[batch, heads, keys, head_dim]`, likewise, as it was multiplied.
        mask: added to the scores, broadcastable to them.
    """
    head_dim = query.value.shape[-1]
    scale = head_dim**0.5
    a, eta = UNIT_ROUNDOFF[torch.float32], SMALLEST_SUBNORMAL[torch.float32]
    masked = query.value @ key.value.transpose(-1, -2)
    dtype = torch.float32
    if mask is not None:
        masked = masked + mask.to(torch.float64)
        dtype = torch.promote_types(dtype, mask.dtype)
    value = masked / scale
    q, k = query.value.abs(), key.value.abs().transpose(-1, -2)
    inherited = query.bound @ k + (q + query.bound) @ key.bound.transpose(-1, -2)
    magnitudes = q @ k
    if mask is not None:  # a soft mask may be the first addend
        magnitudes = magnitudes + torch.where(mask > torch.finfo(mask.dtype).min, mask, 0).to(torch.float64).abs()
    of_terms = gamma(head_dim + 2, a) + shortcuts.term_error(torch.float32)
    bound = (of_terms * magnitudes + inherited + a * masked.abs()) / scale + 3 * a * value.abs()
    return bounded_output(value, bound * (1 + 4 * a) + (head_dim + 3) * eta, dtype)
