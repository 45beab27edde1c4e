"""The rotation of q and k.

Each rotated element is one product plus or minus another: three roundings, of which no path meets more than two.

    o = x·cos + rot(x)·sin          B = γ₂(u)(|x cos| + |rot(x) sin|) + 2η

u is that of the dtype to which x and the table promote. The dimensions beyond `rotary_dim` are unchanged: B = 0.
"""

from __future__ import annotations

import torch

from cgverify.oracle.arithmetic import (
    SMALLEST_SUBNORMAL,
    UNIT_ROUNDOFF,
    Expected,
    bound_after_rounding,
    bounded_output,
    gamma,
)


def rope(x: torch.Tensor, table: torch.Tensor, position_ids: torch.Tensor) -> Expected:
    """Rotate x.

    Args:
        x: `[batch, seq, heads, head_dim]`.
        table: `[positions, rotary_dim]`, sines before cosines.
        position_ids: `[batch or 1, seq]`.
    """
    dtype = torch.promote_types(x.dtype, table.dtype)
    half = table.shape[-1] // 2
    angles = table[position_ids].to(torch.float64)[:, :, None, :]
    sin, cos = angles[..., :half], angles[..., half:]
    wide = x.to(torch.float64)
    value, bound = wide.clone(), torch.zeros_like(wide)
    even, odd = wide[..., 0 : 2 * half : 2], wide[..., 1 : 2 * half : 2]
    rounding = gamma(2, UNIT_ROUNDOFF[dtype])
    value[..., 0 : 2 * half : 2] = even * cos - odd * sin
    value[..., 1 : 2 * half : 2] = odd * cos + even * sin
    bound[..., 0 : 2 * half : 2] = rounding * ((even * cos).abs() + (odd * sin).abs()) + 2 * SMALLEST_SUBNORMAL[dtype]
    bound[..., 1 : 2 * half : 2] = rounding * ((odd * cos).abs() + (even * sin).abs()) + 2 * SMALLEST_SUBNORMAL[dtype]
    return bounded_output(value, bound, dtype)


def rounded_to(rotated: Expected, dtype: torch.dtype) -> Expected:
    """Return rotated heads in another dtype: R(o, B) for the rotated dimensions, 0 for the others."""
    if rotated.dtype == dtype:
        return rotated
    bound = torch.where(rotated.bound > 0, bound_after_rounding(rotated.value, rotated.bound, dtype), 0.0)
    return Expected(rotated.value, bound, dtype)
