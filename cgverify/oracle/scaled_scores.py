"""Attention scores, q·kᵀ · D^−½ + mask, in float32 until a wider mask promotes them.

With dh the head size, s = q·kᵀ/√D, m the mask (0 in the first |m| if it hides), a = 2⁻²⁴ and o = s + m:

    B = [ γ_{dh+2}(a)(|q||k|ᵀ/√D + |m|) + 3a|s| + a|o| ](1 + 4a) + (dh + 3)η

Two of γ's roundings are casts of float64 q and k to float32. 3a is the rounding of the scale, of a possible √D to
divide by, and of the product with it; a|o| is the sum with the mask. |m| is next to the product because a fused
kernel may start from the mask. If q or k was not observed after the rotation, the rotation's own bounds β_q, β_k add
(β_q|k|ᵀ + |q|β_kᵀ + β_q β_kᵀ)/√D: two stages judged as one.

If operands of float32 products may be rounded, 2τ + τ² joins γ (`cgverify/oracle/shortcuts.py`).
"""

from __future__ import annotations

import torch

from cgverify.oracle.arithmetic import SMALLEST_SUBNORMAL, UNIT_ROUNDOFF, Expected, bounded_output, gamma
from cgverify.oracle.shortcuts import Shortcuts


def scaled_scores(query: Expected, key: Expected, mask: torch.Tensor | None, shortcuts: Shortcuts) -> Expected:
    """Return the scores `[batch, heads, seq, keys]`.

    Args:
        query: `[batch, heads, seq, head_dim]`, rotated; its bound is 0 if it was observed.
        key: `[batch, heads, keys, head_dim]`, as it was multiplied; its bound is 0 if it was observed.
        mask: added to the scaled product, broadcastable to it.
        shortcuts: what products may leave out.
    """
    head_dim = query.value.shape[-1]
    scale = head_dim**-0.5
    a, eta = UNIT_ROUNDOFF[torch.float32], SMALLEST_SUBNORMAL[torch.float32]
    scaled = query.value @ key.value.mT * scale
    q, k = query.value.abs(), key.value.abs().mT
    inherited = (query.bound @ k + (q + query.bound) @ key.bound.mT) * scale
    magnitudes = q @ k * scale
    value, dtype = scaled, torch.float32
    if mask is not None:
        value, dtype = scaled + mask.to(torch.float64), torch.promote_types(torch.float32, mask.dtype)
        visible = mask > torch.finfo(mask.dtype).min  # a soft mask may be the first addend
        magnitudes = magnitudes + torch.where(visible, mask, 0).to(torch.float64).abs()
    of_terms = gamma(head_dim + 2, a) + shortcuts.term_error(torch.float32)
    bound = of_terms * magnitudes + inherited + 3 * a * scaled.abs() + a * value.abs()
    return bounded_output(value, bound * (1 + 4 * a) + (head_dim + 3) * eta, dtype)
