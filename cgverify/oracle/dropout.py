"""Dropout: elements are set to 0, or kept and divided by 1 − p.

Which elements are kept is drawn, and the reference's draw is the measure: elsewhere the tap must be 0 exactly. A kept o
becomes o' = o / (1 − p), in one of two ways. On the CPU a factor 1 / (1 − p) is rounded three times (1 − p to the
accumulator's dtype, the quotient, and, for 16-bit operands, the factor to the operands' dtype), then the product is
rounded; a fused kernel leaves out the rounding of the factor. With u of the tap's dtype, a of the accumulator's and β
the bound on what dropout was given (0 where that was seen):

    e = 2a, and u more where u > a          B = R(o', β/(1 − p)·(1 + e) + e|o'|) where kept, 0 elsewhere

Since e <= 2u, R(o', 2u|o'|) holds as well; for 16-bit operands it is looser by half.

A kept element may be 0, or have become 0 before dropout (a small entry of a softmax, rounded to 16 bits): the reference
then looks as if it had dropped it. Where |o'| <= B nothing can be told, and B holds.
"""

from __future__ import annotations

import torch

from cgverify.oracle.arithmetic import UNIT_ROUNDOFF, Expected, accumulator, bound_after_rounding, bounded_output


def dropout(before: Expected, kept: torch.Tensor, p: float) -> Expected:
    """What dropout must leave.

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
