"""Attention scores under autocast, q·kᵀ · D^−½ + mask, of which the product and its scaling are in the low dtype.

Hugging Face casts q and k to float32 against overflow. Autocast then rounds them to its dtype, of unit roundoff u. With
q̂ and k̂ so rounded, s = q̂·k̂ᵀ, dh the head size, m the mask (0 in |m| if it hides), a = 2⁻²⁴, o = s/√D + m, and w the
unit roundoff of the dtype to which the mask promotes the product:

    b = R_u(s, γ_{dh+1}(a)(|q̂||k̂|ᵀ + √D|m|))     the product, rounded to the low dtype
    c = R_u(s/√D, (b + 2a(|s| + b))/√D)           the scaled product; 2a: the scale, and a possible √D to divide by
    B = R_w(o, c)                                 the sum with the mask

|m| is in b because a fused kernel may start from the mask. The rest is as in `cgverify/oracle/autocast_scores.py`.
"""

from __future__ import annotations

import torch

from cgverify.oracle.arithmetic import UNIT_ROUNDOFF, Expected, bound_after_rounding, cast, gamma
from cgverify.oracle.autocast_scores import both_rounded
from cgverify.oracle.shortcuts import Shortcuts


def autocast_scaled_scores(
    query: Expected, key: Expected, mask: torch.Tensor | None, low: torch.dtype, shortcuts: Shortcuts
) -> Expected:
    """Return the scores `[batch, heads, seq, keys]`.

    Args:
        query: `[batch, heads, seq, head_dim]`, rotated; its bound is 0 if it was observed.
        key: `[batch, heads, keys, head_dim]`; its bound is 0 if it was observed.
        mask: added to the scaled product, broadcastable to it.
        low: the dtype of autocast.
        shortcuts: what products may leave out.
    """
    q, k = (cast(cast(operand, torch.float32), low) for operand in (query, key))
    head_dim = q.value.shape[-1]
    scale = head_dim**-0.5
    a, summing = UNIT_ROUNDOFF[torch.float32], shortcuts.sum_unit(low)
    magnitudes = q.value.abs() @ k.value.abs().mT
    inherited = q.bound @ k.value.abs().mT + (q.value.abs() + q.bound) @ k.bound.mT
    product = q.value @ k.value.mT
    scaled = product * scale
    dtype, value = low, scaled
    if mask is not None:
        dtype, value = torch.promote_types(low, mask.dtype), scaled + mask.to(torch.float64)
        visible = mask > torch.finfo(mask.dtype).min
        magnitudes = magnitudes + torch.where(visible, mask, 0).to(torch.float64).abs() / scale
    error = bound_after_rounding(product, gamma(head_dim + 1, summing) * magnitudes + inherited, low)
    error = bound_after_rounding(scaled, (error + 2 * a * (product.abs() + error)) * scale, low)
    largest = torch.finfo(dtype).max
    overflows = value.abs() + error > largest * (1 + UNIT_ROUNDOFF[dtype] / 2)
    return Expected(value, both_rounded(value, error, dtype).masked_fill(overflows, largest), dtype)
