"""Dropout: elements are set to 0, or kept and divided by 1 − p.

The kept elements are drawn, and both sides must keep those of the reference: all others must be exactly 0. A kept o
becomes o' = o / (1 − p), in one of two ways. On the CPU a factor 1 / (1 − p) is rounded three times (1 − p to the
accumulator's dtype, the quotient, and, for 16-bit operands, the factor to the operands' dtype), then the product is
rounded. A fused kernel leaves out the rounding of the factor. With u of the tap's dtype, a of the accumulator's, and β
the bound of dropout's input (0 if that was observed):

    e = 2a, and u more if u > a             B = R(o', β/(1 − p)·(1 + e) + e|o'|) if kept, otherwise 0

A kept element may be 0 already (a small entry of a softmax, rounded to 16 bits), and then looks as if the reference
dropped it. Elements with |o'| <= B are therefore judged as kept.
"""

from __future__ import annotations

import torch

from cgverify.oracle.arithmetic import UNIT_ROUNDOFF, Expected, accumulator, bound_after_rounding, bounded_output


def dropout(before: Expected, kept: torch.Tensor, p: float) -> Expected:
    """Return what dropout leaves.

    Args:
        before: of any shape and in the dtype of the result.
        kept: boolean, of the same shape: where the reference's result is not 0.
        p: the share of elements that are set to 0.
    """
    u, a = UNIT_ROUNDOFF[before.dtype], UNIT_ROUNDOFF[accumulator(before.dtype)]
    factor = 2 * a + (u if u > a else 0)
    value = before.value / (1 - p)
    error = before.bound / (1 - p) * (1 + factor) + factor * value.abs()
    bound = bound_after_rounding(value, error, before.dtype)
    dropped = ~kept & (value.abs() > bound)
    return bounded_output(value.masked_fill(dropped, 0), bound.masked_fill(dropped, 0), before.dtype)
