"""Rounding: unit roundoffs, and the largest error that correct floating-point arithmetic can make.

Notation as in Higham, *Accuracy and Stability of Numerical Algorithms*: u is the unit roundoff of a dtype, η its
smallest subnormal, and γ_n(u) = n·u / (1 − n·u) bounds the relative error of n roundings in a row. `a` is the unit
roundoff that an operation accumulates in: that of float32 for 16-bit operands, otherwise the operands' own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

UNIT_ROUNDOFF = {
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
    torch.float32: 2.0**-24,
    torch.float64: 2.0**-53,
}
SMALLEST_SUBNORMAL = {
    torch.bfloat16: 2.0**-133,
    torch.float16: 2.0**-24,
    torch.float32: 2.0**-149,
    torch.float64: 2.0**-1074,
}

FLUSHED = {torch.bfloat16: 2.0**-126}
"""Operands and sums below this are 0 in torch's products on the CPU, whose instructions for bfloat16 flush them."""

HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Expected:
    """What a stage must produce: the float64 value, the bound on |tap − value|, and the dtype of the tap."""

    value: torch.Tensor
    bound: torch.Tensor
    dtype: torch.dtype


def underflow(x: torch.Tensor, w: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what underflow in Σ x_i w_i changes, for any order of summation: (n+1)(η + φ) + φ(Σ|x_i| + Σ|w_i|).

    η is the smallest subnormal of the accumulator, and φ is what `FLUSHED` has, otherwise 0. A bias is one more term.

    Args:
        x: `[…, rows, n]`, in float64.
        w: `[…, columns, n]`, in float64.
    """
    flushed = FLUSHED.get(dtype, 0.0)
    of_sums = x.new_full((1,) * x.dim(), (x.shape[-1] + 1) * (SMALLEST_SUBNORMAL[accumulator(dtype)] + flushed))
    if not flushed:
        return of_sums
    return of_sums + flushed * (x.abs().sum(-1)[..., :, None] + w.abs().sum(-1)[..., None, :])


BLOCK_ELEMENTS = 1 << 20
"""The number of elements of a weight that are upcast at a time: 8 MiB in float64."""


def row_blocks(weight: torch.Tensor, elements: int = BLOCK_ELEMENTS) -> Iterator[slice]:
    """Yield slices of the rows of a weight `[m, n]`, each with at most `elements` elements or a single row."""
    m, n = weight.shape
    block = max(1, elements // n)
    return (slice(start, min(start + block, m)) for start in range(0, m, block))


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which an operation on `dtype` operands accumulates."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def gamma(n: int, unit: float) -> float:
    """Return γ_n(u); infinity if n roundings may lose every digit."""
    return n * unit / (1 - n * unit) if n * unit < 1 else float("inf")


def bound_after_rounding(value: torch.Tensor, bound: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return R(o, b) = b + u(|o| + b) + η: the bound after a final rounding to `dtype`."""
    return bound + UNIT_ROUNDOFF[dtype] * (value.abs() + bound) + SMALLEST_SUBNORMAL[dtype]


def bounded_output(value: torch.Tensor, bound: torch.Tensor, dtype: torch.dtype) -> Expected:
    """Return a stage's result. In float64 the oracle errs as much as the tap, so the bound is doubled."""
    return Expected(value, 2 * bound if dtype == torch.float64 else bound, dtype)


def rounded_output(value: torch.Tensor, error: torch.Tensor, dtype: torch.dtype) -> Expected:
    """Return the result of a stage that rounds to `dtype` last, B = R(o, error)."""
    return bounded_output(value, bound_after_rounding(value, error, dtype), dtype)


def exact_output(value: torch.Tensor, dtype: torch.dtype) -> Expected:
    """Return the result of a stage that may only move or cast values: `value`, rounded once to `dtype`."""
    kept = value.to(dtype).to(torch.float64)
    return Expected(kept, torch.zeros_like(kept), dtype)


def cast(value: Expected, dtype: torch.dtype) -> Expected:
    """Cast to `dtype`: exactly one rounding if the value was observed, R(o, β) if it was computed with bound β."""
    if value.bound.any():
        return Expected(value.value, bound_after_rounding(value.value, value.bound, dtype), dtype)
    return exact_output(value.value.to(value.dtype), dtype)


def exact_input(tensor: torch.Tensor) -> Expected:
    """Return an observed tensor as the input of a stage: its own value, without error."""
    value = tensor.to(torch.float64)
    return Expected(value, torch.zeros_like(value), tensor.dtype)
