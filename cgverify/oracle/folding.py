"""What weights must be after TransformerLens has processed them, as far as log-probabilities can tell.

Its compatibility mode folds layer norms into the Linears behind them and value biases into the output's, and takes
means off. A norm returns γ∘x̂ + β with x̂ of mean 0, so a Linear behind it is the map x̂ ↦ Ex̂ + e,

    E = W·diag(γ)        e = Wβ + b

whoever holds the factors. Three means have no effect, and are taken off before anything is compared: that of a row of E
behind a norm; that of what is written to the residual stream, which the next norm takes off; that of all logits.

The processing is done in float32 and cast to the model's dtype, of unit roundoff u. Its casts, its product and its
differences are four roundings, so an element that is the difference of x and the means m_i may be off by

    r (|x| + Σ mean |x|) + η        r = 4·2⁻²⁴ + u, η the smallest subnormal

and by the means of that, of which the errors of the subtracted means themselves are no part: they are means. An offset
has the bound of its sum (`cgverify/oracle/product.py`) besides. Where it goes on through an output weight, the bounds
β_i of independent sums, each so many standard deviations, come out as the same number of them: √Σ(w_i β_i)².
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from cgverify.oracle.arithmetic import SMALLEST_SUBNORMAL, UNIT_ROUNDOFF, Expected, row_blocks
from cgverify.oracle.product import product
from cgverify.oracle.shortcuts import Shortcuts

OUT, IN = 0, 1
"""Axes of a weight `[out, in]`, over which a mean may be without effect."""


def unit(dtype: torch.dtype) -> float:
    """r of the docstring above."""
    return 4 * UNIT_ROUNDOFF[torch.float32] + UNIT_ROUNDOFF[dtype]


def centred(weight: torch.Tensor, gain: torch.Tensor | None, axes: Sequence[int]) -> Iterator[torch.Tensor]:
    """E without its means over `axes`, in float64, some rows after another.

    Args:
        weight: `[out, in]`.
        gain: γ `[in]`, or None where there is no norm before it.
    """
    means = _means(_scaled(weight, gain))
    start = 0
    for rows in _scaled(weight, gain):
        yield rows - _sum_of_means(means, axes, slice(start, start + len(rows)))
        start += len(rows)


def expected_weight(weight: torch.Tensor, gain: torch.Tensor | None, axes: Sequence[int]) -> Iterator[Expected]:
    """What `centred` must give of the processed weight, likewise."""
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
    """e = W·shift + b `[out]` in float64."""
    e = torch.cat([rows @ shift.to(torch.float64) for rows in _scaled(weight, None)])
    return e if bias is None else e + bias.to(torch.float64)


def expected_offset(weight: torch.Tensor, bias: torch.Tensor | None, shift: Expected, shortcuts: Shortcuts) -> Expected:
    """What `offset` must be of the processed weight: the bound of its sum, of the casts to float32, and r|e|.

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
    """An offset whose mean has no effect."""
    bound = offset.bound + unit(offset.dtype) * offset.value.abs().mean()
    return Expected(offset.value - offset.value.mean(), bound + bound.mean(), offset.dtype)


def off_by_weight(weight: torch.Tensor, through: torch.Tensor) -> torch.Tensor:
    """By how much a vector `[in]` may come out wrong of a processed weight that writes, for the weight's own errors."""
    parts = expected_weight(weight, None, [OUT])
    return torch.cat([part.bound @ through.abs() for part in parts])


_Means = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Of each row `[out, 1]`, of each column `[in]`, of all."""


def _means(blocks: Iterable[torch.Tensor]) -> _Means:
    rows, columns = [], torch.zeros(())
    for block in blocks:
        rows.append(block.mean(1, keepdim=True))
        columns = columns.to(block) + block.sum(0)
    every = torch.cat(rows)
    return every, columns / len(every), every.mean()


def _sum_of_means(means: _Means, axes: Sequence[int], rows: slice) -> torch.Tensor:
    """What centring over `axes` takes off some rows."""
    row, column, total = means
    if IN in axes and OUT in axes:
        return row[rows] + column - total
    return row[rows] if IN in axes else column.expand(1, -1) if OUT in axes else torch.zeros_like(row[rows])


def _scaled(weight: torch.Tensor, gain: torch.Tensor | None) -> Iterator[torch.Tensor]:
    """E in float64, some rows after another."""
    for rows in row_blocks(weight):
        wide = weight[rows].detach().to(torch.float64)
        yield wide if gain is None else wide * gain.to(torch.float64)
