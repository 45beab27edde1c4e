"""Monte Carlo arithmetic: a float64 computation and its gradient in which every rounding of another dtype is drawn.

A whole gradient has no closed bound that would see anything: errors pass through softmax and gelu before they arrive.
So its spread is sampled (Parker, *Monte Carlo Arithmetic*, 1997): run the computation with each stored result t of unit
roundoff u off by (u|t| + η)ξ, ξ uniform in ±1, forward and backward, and see how far the gradient moves. A sum of n
terms c_i, accumulated one by one in unit roundoff a, is off by Σ δ_k S_k besides. With independent δ_k uniform in ±a
and prefix sums that grow like a random walk, S_k² ~ ‖c‖²k/n, that has the standard deviation

    a ‖c‖₂ √(n/6)

which kernels that sum in blocks stay below. Operands of spacing τ (`cgverify/oracle/shortcuts.py`) add τ‖c‖₂/√6. Every
operation saves for its backward pass what it stored.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.autograd import Function

from cgverify.oracle.arithmetic import SMALLEST_SUBNORMAL, UNIT_ROUNDOFF
from cgverify.oracle.shortcuts import Shortcuts


class Roundings(Protocol):
    """Where the errors come from."""

    def stored(self, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`value` as it is after rounding to `dtype`."""

    def summed(self, value: torch.Tensor, squares: torch.Tensor, terms: int, dtype: torch.dtype) -> torch.Tensor:
        """`value` as it is after a sum of so many terms, with such a sum of their squares, stored in `dtype`."""


class Exact:
    """No errors: float64 itself."""

    def stored(self, value: torch.Tensor, _: torch.dtype) -> torch.Tensor:
        return value.clone()

    def summed(self, value: torch.Tensor, _: torch.Tensor, __: int, ___: torch.dtype) -> torch.Tensor:
        return value


class Drawn:
    """Errors drawn from a seed."""

    def __init__(self, seed: int, device: torch.device, shortcuts: Shortcuts) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)
        self._shortcuts = shortcuts

    def stored(self, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        xi = torch.empty_like(value).uniform_(-1, 1, generator=self._generator)
        return value + (UNIT_ROUNDOFF[dtype] * value.abs() + SMALLEST_SUBNORMAL[dtype]) * xi

    def summed(self, value: torch.Tensor, squares: torch.Tensor, terms: int, dtype: torch.dtype) -> torch.Tensor:
        xi = torch.empty_like(value).normal_(generator=self._generator)
        unit, spacing = self._shortcuts.sum_unit(dtype), self._shortcuts.operand_spacing(dtype)
        deviation = ((unit**2 * terms + spacing**2) / 6 * squares).sqrt()
        return self.stored(value + deviation * xi, dtype)


def stored(x: torch.Tensor, dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
    """x after rounding to `dtype`, and so its gradient."""
    return _Stored.apply(x, dtype, roundings)  # type: ignore[no-any-return,no-untyped-call]


def arriving(x: torch.Tensor, dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
    """x, as it is; its gradient is rounded to `dtype`."""
    return _Arriving.apply(x, dtype, roundings)  # type: ignore[no-any-return,no-untyped-call]


def product(x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
    """x·y, matrices or equally many of them."""
    return _Product.apply(x, y, dtype, roundings)  # type: ignore[no-any-return,no-untyped-call]


def in_rows(x: torch.Tensor, rows: int, dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
    """A vector `[n]` in each of the rows `[rows, n]`: its gradient is a sum over them."""
    return _InRows.apply(x, rows, dtype, roundings)  # type: ignore[no-any-return,no-untyped-call]


def softmax(x: torch.Tensor, dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
    return _Softmax.apply(x, dtype, roundings)  # type: ignore[no-any-return,no-untyped-call]


def tanh(x: torch.Tensor, dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
    return _Tanh.apply(x, dtype, roundings)  # type: ignore[no-any-return,no-untyped-call]


class _Stored(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
        ctx.how = dtype, roundings
        return roundings.stored(x, dtype)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        dtype, roundings = ctx.how
        return roundings.stored(g, dtype), None, None


class _Arriving(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
        ctx.how = dtype, roundings
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        dtype, roundings = ctx.how
        return roundings.stored(g, dtype), None, None


class _Product(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
        ctx.save_for_backward(x, y)
        ctx.how = dtype, roundings
        return _multiplied(x, y, dtype, roundings)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        x, y = ctx.saved_tensors
        return _multiplied(g, y.mT, *ctx.how), _multiplied(x.mT, g, *ctx.how), None, None


def _multiplied(x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
    return roundings.summed(x @ y, x.square() @ y.square(), x.shape[-1], dtype)


class _InRows(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rows: int, dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
        ctx.how = dtype, roundings
        return x.expand(rows, -1).clone()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        dtype, roundings = ctx.how
        return roundings.summed(g.sum(0), g.square().sum(0), len(g), dtype), None, None, None


class _Softmax(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
        p = roundings.stored(x.softmax(-1), dtype)
        ctx.save_for_backward(p)
        ctx.how = dtype, roundings
        return p

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        (p,) = ctx.saved_tensors
        dtype, roundings = ctx.how
        # The two terms cancel where a query attends to one key: each is rounded by itself.
        terms = roundings.stored(p * g, dtype)
        inner = roundings.summed(terms.sum(-1), terms.square().sum(-1), p.shape[-1], dtype)
        return roundings.stored(terms - p * inner.unsqueeze(-1), dtype), None, None


class _Tanh(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
        t = roundings.stored(x.tanh(), dtype)
        ctx.save_for_backward(t)
        ctx.how = dtype, roundings
        return t

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        (t,) = ctx.saved_tensors
        dtype, roundings = ctx.how
        return roundings.stored(g * (1 - t.square()), dtype), None, None
