"""The weights after TransformerLens has processed them, up to changes that have no effect on log-probabilities.

Its compatibility mode folds layer norms into the Linears after them and value biases into the output's bias, and
subtracts means. A norm returns γ∘x̂ + β with x̂ of mean 0, so a Linear after it is the map x̂ ↦ Ex̂ + e,

    E = W·diag(γ)        e = Wβ + b

however the factors are distributed. Three means have no effect, and are subtracted before anything is compared: that of
a row of E after a norm; that of what is written to the residual stream, which the next norm subtracts; that of all
logits.

The processing is done in float32 and cast to the model's dtype, of unit roundoff u. Its casts, its product and its
differences are four roundings, so an element that is the difference of x and the means m_i may be off by

    r (|x| + Σ mean |x|) + η        r = 4·2⁻²⁴ + u, η the smallest subnormal

and by the means of that, which do not include the errors of the subtracted means: these are means themselves. An offset
also has the bound of its sum (`cgverify/oracle/product.py`). If it passes through an output weight, the bounds β_i of
independent sums, each of k standard deviations, become √Σ(w_i β_i)², which is k standard deviations again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from cgverify.oracle.arithmetic import SMALLEST_SUBNORMAL, UNIT_ROUNDOFF, Expected, row_blocks
from cgverify.oracle.product import product
from cgverify.oracle.shortcuts import Shortcuts

OUT, IN = 0, 1
"""The axes of a weight `[out, in]`. The mean over one of them may have no effect."""


def unit(dtype: torch.dtype) -> float:
    """Return r of the formula above."""
    return 4 * UNIT_ROUNDOFF[torch.float32] + UNIT_ROUNDOFF[dtype]


def centred(weight: torch.Tensor, gain: torch.Tensor | None, axes: Sequence[int]) -> Iterator[torch.Tensor]:
    """Yield E without its means over `axes`, in float64, in blocks of rows.

    Args:
        weight: `[out, in]`.
        gain: γ `[in]`, or None if there is no norm before it.
    """
    means = _means(_scaled(weight, gain))
    start = 0
    for rows in _scaled(weight, gain):
        yield rows - _sum_of_means(means, axes, slice(start, start + len(rows)))
        start += len(rows)


def expected_weight(weight: torch.Tensor, gain: torch.Tensor | None, axes: Sequence[int]) -> Iterator[Expected]:
    """Yield what `centred` must yield for the processed weight. Arguments as for `centred`."""
    r, start = unit(weight.dtype), 0
    row, column, total = _means(rows.abs() for rows in _scaled(weight, gain))
    over_in, over_out = float(IN in axes), float(OUT in axes)
    for rows, value in zip(_scaled(weight, gain), centred(weight, gain, axes), strict=True):
        here = row[start : start + len(rows)]
        own = rows.abs() + over_in * here + over_out * column
        mean_in = over_in * ((1 + over_in) * here + over_out * total)
        mean_out = over_out * ((1 + over_out) * column + over_in * total)
        mean_both = over_in * over_out * (1 + over_in + over_out) * total
        smallest = (1 + over_in + over_out) * SMALLEST_SUBNORMAL[weight.dtype]
        yield Expected(value, r * (own + mean_in + mean_out + mean_both) + smallest, weight.dtype)
        start += len(rows)


def offset(weight: torch.Tensor, bias: torch.Tensor | None, shift: torch.Tensor) -> torch.Tensor:
    """Return e = W·shift + b `[out]` in float64."""
    e = torch.cat([rows @ shift.to(torch.float64) for rows in _scaled(weight, None)])
    return e if bias is None else e + bias.to(torch.float64)


def expected_offset(weight: torch.Tensor, bias: torch.Tensor | None, shift: Expected, shortcuts: Shortcuts) -> Expected:
    """Return what `offset` must be for the processed weight: within its sum's bound, the casts to float32, and r|e|.

    Args:
        shift: `[in]`: β, or the offset of the Linear before it.
    """
    wide = Expected(shift.value[None], torch.zeros_like(shift.value[None]), torch.float32)
    summed = product(wide, weight.to(torch.float32), None if bias is None else bias.to(torch.float32), shortcuts)
    value = offset(weight, bias, shift.value)
    terms = torch.cat([rows.abs() @ shift.value.abs() for rows in _scaled(weight, None)])
    inherited = torch.cat([rows.square() @ shift.bound.square() for rows in _scaled(weight, None)]).sqrt()
    casts = 2 * UNIT_ROUNDOFF[torch.float32] * terms + unit(weight.dtype) * value.abs()
    bound = summed.bound[0] + inherited + casts + SMALLEST_SUBNORMAL[weight.dtype]
    return Expected(value, bound, weight.dtype)


def without_mean(offset: Expected) -> Expected:
    """Subtract the mean of an offset, where it has no effect."""
    bound = offset.bound + unit(offset.dtype) * offset.value.abs().mean()
    return Expected(offset.value - offset.value.mean(), bound + bound.mean(), offset.dtype)


def off_by_weight(weight: torch.Tensor, through: torch.Tensor) -> torch.Tensor:
    """Return the error `[out]` that the processed weight's own errors cause when it multiplies a vector `[in]`."""
    parts = expected_weight(weight, None, [OUT])
    return torch.cat([part.bound @ through.abs() for part in parts])


_Means = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""The mean of each row `[out, 1]`, of each column `[in]`, and of all elements."""


def _means(blocks: Iterable[torch.Tensor]) -> _Means:
    rows, columns = [], torch.zeros(())
    for block in blocks:
        rows.append(block.mean(1, keepdim=True))
        columns = columns.to(block) + block.sum(0)
    every = torch.cat(rows)
    return every, columns / len(every), every.mean()


def _sum_of_means(means: _Means, axes: Sequence[int], rows: slice) -> torch.Tensor:
    """Return what centring over `axes` subtracts from some rows."""
    row, column, total = means
    if IN in axes and OUT in axes:
        return row[rows] + column - total
    return row[rows] if IN in axes else column.expand(1, -1) if OUT in axes else torch.zeros_like(row[rows])


def _scaled(weight: torch.Tensor, gain: torch.Tensor | None) -> Iterator[torch.Tensor]:
    """Yield E in float64, in blocks of rows."""
    for rows in row_blocks(weight):
        wide = weight[rows].detach().to(torch.float64)
        yield wide if gain is None else wide * gain.to(torch.float64)
