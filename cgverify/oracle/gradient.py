"""The right gradient: autograd in float64 on the forwards of `cgverify/oracle/forward.py`, and its spread.

The spread s of each element comes from `SAMPLES` runs in Monte Carlo arithmetic. A root mean square of so few samples
is itself uncertain, so it has a lower limit from its slice (a head's rows, a batch row, a whole matrix), in which
errors grow with the row's and with the column's factor: s²_ij >= R_i C_j / M, with the means over the row, over the
column and over all. For a vector the limit is the mean.

    element   B = 32 · s + η
    scale     B = (16 · σ + 16·2⁻⁵³√n) |o|, where the slice's factor α = ⟨tap, o⟩ / ⟨o, o⟩, of n terms, has spread σ

The second bound detects what the first does not detect in 16 bits: all elements are one percent too large, which for
each of them is less than its rounding error.

The factors are measured, not derived. With Hoeffding's 8, doubled as for products (`cgverify/oracle/product.py`), the
errors of Hugging Face's modules and of our bridge on codegen-nano were within the bound (280 cells over seeds, layers,
kinds and all four dtypes at 2×8 tokens: at most .44 of it for elements and .74 for scales). A correct variant that
computes its products row by row came to 1.12 of it in float32, because its roundings are not those that were drawn.
The factor for elements is therefore twice as large.

The least r of five seeded faults of attention (`tests/support/gradient_faults.py`, one seed) in the gradient that each
must break: a factor 1.01 gives 1.03 in bfloat16, which is barely detected and only by its scale, 9 in float16 and 2·10⁴
in float32. With a factor of 16 for elements, a detached key gives 18, 146 and 3·10⁵. A frozen weight, a wrong transpose
and a softmax whose gradient is passed straight through give 71 and more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from cgverify.oracle.arithmetic import SMALLEST_SUBNORMAL, UNIT_ROUNDOFF, Expected
from cgverify.oracle.monte_carlo import Drawn, Exact, Roundings
from cgverify.oracle.shortcuts import Shortcuts

SAMPLES = 16
ELEMENTS = 32.0
SCALES = 16.0

Forward = Callable[[Mapping[str, torch.Tensor], Roundings], torch.Tensor]
"""From the leaves in float64 to the output."""


@dataclass(frozen=True)
class Gradient:
    """The gradient of one leaf, in slices `[…, rows, columns]` or as a vector."""

    value: torch.Tensor
    spread: torch.Tensor
    """s, in the shape of the value."""
    scale_spread: torch.Tensor
    """σ, `[…, 1, 1]`, or `[1]` for a vector."""
    dtype: torch.dtype

    def elements(self) -> Expected:
        """Return the gradient to judge element by element."""
        return Expected(self.value, ELEMENTS * self.spread + SMALLEST_SUBNORMAL[self.dtype], self.dtype)

    def scale(self, tap: torch.Tensor) -> Expected:
        """Return the tap with its factor along the gradient corrected, slice by slice."""
        off = _along(tap.to(torch.float64), self.value) - 1
        terms = math.prod(self.value.shape[axis] for axis in _axes(self.value))
        relative = SCALES * self.scale_spread + 16 * UNIT_ROUNDOFF[torch.float64] * terms**0.5
        bound = relative * self.value.abs() + SMALLEST_SUBNORMAL[self.dtype]
        return Expected(tap.to(torch.float64) - off * self.value, bound, self.dtype)


def gradients(
    forward: Forward,
    leaves: Mapping[str, torch.Tensor],
    cotangent: torch.Tensor,
    slices: Callable[[str, torch.Tensor], torch.Tensor],
    shortcuts: Shortcuts,
) -> dict[str, Gradient]:
    """Return the gradient of sum(output · cotangent) in each leaf.

    Args:
        leaves: as stored. A gradient has the dtype of its leaf.
        slices: from a leaf's name and gradient to the gradient in the slices that are judged one by one.
    """

    def run(roundings: Roundings) -> dict[str, torch.Tensor]:
        wide = {name: leaf.detach().to(torch.float64).requires_grad_() for name, leaf in leaves.items()}
        with torch.enable_grad():
            total = (forward(wide, roundings) * cotangent.to(torch.float64)).sum()
            found = torch.autograd.grad(total, list(wide.values()))
        return {name: slices(name, gradient) for name, gradient in zip(wide, found, strict=True)}

    value = run(Exact())
    squares = {name: torch.zeros_like(each) for name, each in value.items()}
    scales = {name: torch.zeros_like(_along(each, each)) for name, each in value.items()}
    for seed in range(SAMPLES):
        for name, sample in run(Drawn(seed, shortcuts)).items():
            squares[name] += (sample - value[name]).square() / SAMPLES
            scales[name] += (_along(sample, value[name]) - 1).square() / SAMPLES
    return {
        name: Gradient(each, _smoothed(squares[name]).sqrt(), scales[name].sqrt(), leaves[name].dtype)
        for name, each in value.items()
    }


def _axes(x: torch.Tensor) -> tuple[int, ...]:
    return (-1,) if x.dim() == 1 else (-2, -1)


def _along(x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return α by slice; 1 if the gradient is 0, which has no direction."""
    length = value.square().sum(_axes(value), keepdim=True)
    return torch.where(length > 0, (x * value).sum(_axes(value), keepdim=True) / length, 1.0)


def _smoothed(squares: torch.Tensor) -> torch.Tensor:
    if squares.dim() == 1:
        return squares.clamp_min(float(squares.mean()))
    rows, columns = squares.mean(-1, keepdim=True), squares.mean(-2, keepdim=True)
    mean = squares.mean((-2, -1), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.maximum(squares, rows * (columns / mean))
