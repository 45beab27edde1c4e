"""Sums of products: projections, MLP in and out, unembedding.

For y = Σ x_i w_i (+ b) of n terms, accumulated with unit roundoff a in any order and rounded to u:

    E = min( γ_{n+2}(a) Σ|x_i w_i| ,  16 a √n ( max_k |S_k| + ‖x∘w‖₂ ) ) + υ        B = R(y, E)

The first form holds for every order of summation (Higham, section 3.1). At n = 16,384 it is too loose to see a dropped
term. The second form is Hoeffding's inequality on Σ δ_k S_k + Σ ε_k x_k w_k with independent roundings (Higham and Mary
2019): λ = 8 leaves a failure probability of 2·10⁻¹⁴, and the factor is doubled because equal addends round alike. S_k
are the prefix sums, here in chunks of 64 terms. A bias is one more term, and may come first. υ is what underflow
changes (`underflow` in `cgverify/oracle/arithmetic.py`).

A weight is read in blocks of rows, once for all of its inputs, and is never copied whole to float64.

Under autocast the operands are first rounded (`cgverify/oracle/autocast.py`), and nothing else changes. Allowed
shortcuts widen E (`cgverify/oracle/shortcuts.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from cgverify.oracle.arithmetic import Expected, gamma, rounded_output, row_blocks, underflow
from cgverify.oracle.autocast import operand
from cgverify.oracle.shortcuts import Shortcuts

CHUNK = 64


def products(
    inputs: Sequence[torch.Tensor],
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    shortcuts: Shortcuts,
    autocast: torch.dtype | None = None,
) -> Iterator[tuple[slice, list[Expected]]]:
    """Yield x·weightᵀ + bias for every input, one block of output columns at a time.

    Args:
        inputs: `[…, n]` each, in the model's dtype.
        weight: `[m, n]`, as stored.
        bias: `[m]`, as stored.
        autocast: the dtype of autocast, if it is on.

    Yields:
        A slice of the m columns, and for each input the expected values `[rows, columns]` in it.
    """
    if not inputs:
        return
    rows = [operand(x.reshape(-1, x.shape[-1]), autocast) for x in inputs]
    stacked = torch.cat([x.to(torch.float64) for x in rows])
    for columns in row_blocks(weight):
        factor = operand(weight[columns], autocast)
        added = None if bias is None else operand(bias[columns], autocast)
        value, error = _product(stacked, factor, added, shortcuts)
        pieces = zip(value.split([len(x) for x in rows]), error.split([len(x) for x in rows]), rows, strict=True)
        yield columns, [rounded_output(v, e, x.dtype) for v, e, x in pieces]


def product(x: Expected, weight: torch.Tensor, bias: torch.Tensor | None, shortcuts: Shortcuts) -> Expected:
    """Return x·weightᵀ + bias, `[…, m]`, all columns at once, as the input of another stage.

    Args:
        x: `[…, n]`. If it was not observed, its bound β adds β|weight|ᵀ and the roundings of that product.
        weight: `[m, n]`, as stored.
        bias: `[m]`, as stored.
    """
    rows, inherited = x.value.flatten(0, -2), x.bound.flatten(0, -2)
    values, errors = [], []
    for columns in row_blocks(weight):
        value, error = _product(rows, weight[columns], None if bias is None else bias[columns], shortcuts)
        if inherited.any():
            summing = min(gamma(weight.shape[1] + 2, shortcuts.sum_unit(weight.dtype)), 1.0)
            growth = 1 + summing + shortcuts.term_error(weight.dtype)
            error = error + inherited @ weight[columns].to(torch.float64).abs().T * growth
        values.append(value)
        errors.append(error)
    shape = (*x.value.shape[:-1], len(weight))
    return rounded_output(torch.cat(values, -1).reshape(shape), torch.cat(errors, -1).reshape(shape), x.dtype)


def _sums_of_squares(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return Σ (x_i w_i)², never less than the true value and at most 6·10⁻³ more, which is enough for a bound.

    Rows are first scaled to a largest element of 1, so that nothing overflows and only negligible terms underflow.
    """
    scale_x = x.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    w = weight.to(torch.float32)
    scale_w = w.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
    sums = (x / scale_x).to(torch.float32).square_() @ (w / scale_w).square_().T
    return sums.to(torch.float64) * (1 + 3e-3) * (scale_x * scale_w.to(torch.float64)).square()


def _product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, shortcuts: Shortcuts
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the value `[rows, columns]` and E."""
    a = shortcuts.sum_unit(weight.dtype)
    n = x.shape[-1] + (bias is not None)
    w = weight.to(torch.float64)
    value = x.new_zeros(len(x), len(w))
    largest = torch.zeros_like(value)
    first = None if bias is None else bias.to(torch.float64)
    for terms in range(0, x.shape[-1], CHUNK):
        value.addmm_(x[:, terms : terms + CHUNK], w[:, terms : terms + CHUNK].T)
        torch.maximum(largest, value.abs(), out=largest)
        if first is not None:  # the bias may be added last or first: both prefix sums count
            torch.maximum(largest, (value + first).abs_(), out=largest)
    certain = None
    # 16√n (max|S_k| + ‖x∘w‖₂) <= 32√n Σ|x_i w_i|, so from n = 1020 on the first form is never the smaller one.
    if 32 * n**0.5 > n + 2 and (n + 2) * a < 1:
        certain = x.abs() @ w.abs().T
    squares = _sums_of_squares(x, weight)
    term_error = shortcuts.term_error(weight.dtype)
    off = shortcuts.operands_error(value, squares, weight.dtype) if term_error else None
    if off is not None and certain is not None:
        off = torch.minimum(off, term_error * certain)
    if first is not None:
        value += first
        torch.maximum(largest, first.abs().expand_as(largest), out=largest)
        squares += first.square()
        certain = None if certain is None else certain + first.abs()
    probable = squares.sqrt_().add_(largest).mul_(16 * a * n**0.5)
    error = probable if certain is None else torch.minimum(certain.mul_(gamma(n + 2, a)), probable)
    error += underflow(x, w, weight.dtype)
    return value, error if off is None else error.mul_(1 + term_error).add_(off)
