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

Tangents, second derivatives, gradients in a cached prefix and at hooks have the same factors. On codegen-nano (layer 0,
seed 0, all kinds at 2×8 tokens, transformers 5.23 and 5.24, all dtypes with the latter and all but float64 with the
former) our bridge and Hugging Face's modules were within .24 of the bound for elements and .29 of that for scales.

The least r of five seeded faults of attention (`tests/support/gradient_faults.py`, one seed) in the gradient that each
must break: a factor 1.01 gives about 1 in bfloat16, at the edge and only by its scale, 9 in float16 and 2·10⁴
in float32. With a factor of 16 for elements, a detached key gives 18, 146 and 3·10⁵. A frozen weight, a wrong transpose
and a softmax whose gradient is passed straight through give 71 and more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from cgverify.oracle.arithmetic import SMALLEST_SUBNORMAL, UNIT_ROUNDOFF, Expected, bounded_output, gamma
from cgverify.oracle.monte_carlo import Drawn, Exact, Roundings
from cgverify.oracle.shortcuts import Shortcuts

SAMPLES = 16
ELEMENTS = 32.0
SCALES = 16.0

Forward = Callable[[Mapping[str, torch.Tensor], Roundings], Mapping[str, torch.Tensor]]
"""From the leaves in float64 to the tensors that are computed from them, by name."""


@dataclass(frozen=True)
class Gradient:
    """The gradient of one leaf, in slices `[…, rows, columns]` or as a vector."""

    value: torch.Tensor
    spread: torch.Tensor
    """s, in the shape of the value."""
    scale_spread: torch.Tensor
    """σ, `[…, 1, 1]`, or `[1]` for a vector."""
    dtype: torch.dtype

    def elements(self, dtype: torch.dtype | None = None) -> Expected:
        """Return the gradient to judge element by element, perhaps of a tensor that has another dtype."""
        dtype = dtype or self.dtype
        return Expected(self.value, ELEMENTS * self.spread + SMALLEST_SUBNORMAL[dtype], dtype)

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
    cotangents: Mapping[str, torch.Tensor],
    wanted: Sequence[str],
    dtype: torch.dtype,
    slices: Callable[[str, torch.Tensor], torch.Tensor],
    shortcuts: Shortcuts,
) -> dict[str, Gradient]:
    """Return the gradient of Σ sum(result · cotangent) in each leaf and in each wanted result.

    Args:
        leaves: as stored. A gradient has the dtype of its leaf.
        cotangents: by the name of a result.
        wanted: results by name.
        dtype: that of their gradients.
        slices: from a leaf's name and gradient to the gradient in the slices that are judged one by one.
    """

    def run(roundings: Roundings) -> dict[str, torch.Tensor]:
        wide = {name: leaf.detach().to(torch.float64).requires_grad_() for name, leaf in leaves.items()}
        with torch.enable_grad():
            results = forward(wide, roundings)
            parts = [(results[name] * each.to(torch.float64)).sum() for name, each in cotangents.items()]
            targets = wide | {name: results[name] for name in wanted}
            found = torch.autograd.grad(parts, list(targets.values()))
        return {name: slices(name, gradient) for name, gradient in zip(targets, found, strict=True)}

    return _sampled(run, {name: leaf.dtype for name, leaf in leaves.items()} | dict.fromkeys(wanted, dtype), shortcuts)


def added_rows(ids: torch.Tensor, gradient: torch.Tensor, rows: int) -> Expected:
    """Return the gradient of a table `[rows, width]`, from that of the rows that were looked up.

    A row that was looked up n times has the sum of n terms, in any order:

        B = γ_{n−1}(u) Σ|g|

    Args:
        ids: `[…]`.
        gradient: `[…, width]`, in the table's dtype.
    """
    flat, terms = ids.flatten(), gradient.flatten(0, -2).to(torch.float64)
    value = terms.new_zeros(rows, terms.shape[-1])
    bound = value.index_add(0, flat, terms.abs())
    for row, n in enumerate(flat.bincount().tolist()):
        if n > 0:
            bound[row] *= gamma(n - 1, UNIT_ROUNDOFF[gradient.dtype])
    return bounded_output(value.index_add(0, flat, terms), bound, gradient.dtype)


TANGENT, SECOND = "tangent", "second"


def tangent_and_second(
    forward: Callable[[torch.Tensor, Roundings], torch.Tensor],
    x: torch.Tensor,
    cotangent: torch.Tensor,
    direction: torch.Tensor,
    shortcuts: Shortcuts,
) -> dict[str, Gradient]:
    """Return the derivative of a forward in a direction, J·d, and that of the gradient, ∇⟨Jᵀg, d⟩, g the cotangent.

    Both are gradients of the number ⟨Jᵀg, d⟩, which is ⟨g, J·d⟩: the first in g, the second in x. The operations of a
    backward pass that is differentiated in g are those of a forward with tangents, so the drawn roundings are too. The
    second is left out if Jᵀg does not depend on x.
    """

    def run(roundings: Roundings) -> dict[str, torch.Tensor]:
        wide, g = (each.detach().to(torch.float64).requires_grad_() for each in (x, cotangent))
        with torch.enable_grad():
            (first,) = torch.autograd.grad(forward(wide, roundings), wide, g, create_graph=True)
            total = (first * direction.to(torch.float64)).sum()
            found = torch.autograd.grad(total, (g, wide), allow_unused=True)
        return {name: each for name, each in zip((TANGENT, SECOND), found, strict=True) if each is not None}

    return _sampled(run, dict.fromkeys((TANGENT, SECOND), x.dtype), shortcuts)


def _sampled(
    run: Callable[[Roundings], dict[str, torch.Tensor]], dtypes: Mapping[str, torch.dtype], shortcuts: Shortcuts
) -> dict[str, Gradient]:
    """Return what a computation in float64 returns, with the spread of each tensor."""
    value = run(Exact())
    squares = {name: torch.zeros_like(each) for name, each in value.items()}
    scales = {name: torch.zeros_like(_along(each, each)) for name, each in value.items()}
    for seed in range(SAMPLES):
        for name, sample in run(Drawn(seed, shortcuts)).items():
            squares[name] += (sample - value[name]).square() / SAMPLES
            scales[name] += (_along(sample, value[name]) - 1).square() / SAMPLES
    return {
        name: Gradient(each, _smoothed(squares[name]).sqrt(), scales[name].sqrt(), dtypes[name])
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
