"""Monte Carlo arithmetic: a float64 computation and its gradient in which every rounding of another dtype is drawn.

A whole gradient has no closed bound that is useful: errors pass through softmax and gelu before they arrive. So its
spread is sampled (Parker, *Monte Carlo Arithmetic*, 1997). Run the computation with each stored result t of unit
roundoff u off by (u|t| + η)ξ, ξ uniform in ±1, forward and backward, and see how far the gradient moves. A sum of n
terms c_i, accumulated one by one in unit roundoff a, is also off by Σ δ_k S_k. With independent δ_k uniform in ±a and
prefix sums that grow like a random walk, S_k² ~ ‖c‖²k/n, that has the standard deviation

    a ‖c‖₂ √(n/6)

Kernels that sum in blocks stay below it. Operands of spacing τ (`cgverify/oracle/shortcuts.py`) add τ‖c‖₂/√6. Every
operation saves what it stored for its backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.autograd import Function

from cgverify.oracle.arithmetic import SMALLEST_SUBNORMAL, UNIT_ROUNDOFF
from cgverify.oracle.shortcuts import Shortcuts


class Roundings(Protocol):
    """The source of the errors."""

    def stored(self, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return `value` after it was rounded to `dtype`."""

    def summed(self, value: torch.Tensor, squares: torch.Tensor, terms: int, dtype: torch.dtype) -> torch.Tensor:
        """Return `value` after it was summed from `terms` terms, whose squares add up to `squares`, in `dtype`."""


class Exact:
    """No errors: float64 itself."""

    def stored(self, value: torch.Tensor, _: torch.dtype) -> torch.Tensor:
        return value.clone()

    def summed(self, value: torch.Tensor, _: torch.Tensor, __: int, ___: torch.dtype) -> torch.Tensor:
        return value


class Drawn:
    """Errors drawn from a seed."""

    def __init__(self, seed: int, shortcuts: Shortcuts) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._shortcuts = shortcuts

    def stored(self, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        xi = torch.empty_like(value).uniform_(-1, 1, generator=self._generator)
        return value + (UNIT_ROUNDOFF[dtype] * value.abs() + SMALLEST_SUBNORMAL[dtype]) * xi

    def summed(self, value: torch.Tensor, squares: torch.Tensor, terms: int, dtype: torch.dtype) -> torch.Tensor:
        xi = torch.empty_like(value).normal_(generator=self._generator)
        unit, spacing = self._shortcuts.sum_unit(dtype), self._shortcuts.operand_spacing(dtype)
        deviation = ((unit**2 * terms + spacing**2) / 6 * squares).sqrt()
        return self.stored(value + deviation * xi, dtype)


Backward = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
"""From the gradient of an operation's result to the gradient of each of its operands."""


class _Operation(Function):
    """An operation that comes with its own backward pass."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[..., tuple[torch.Tensor, Backward]], *operands: torch.Tensor) -> Any:
        value, ctx.backward_of = compute(*operands)
        return value

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        return None, *ctx.backward_of(g)


def _apply(compute: Callable[..., tuple[torch.Tensor, Backward]], *operands: torch.Tensor) -> torch.Tensor:
    """Apply a function of tensors that returns a value and its backward pass.

    The backward pass must not refer to the value itself, but to a detached one: autograd would keep both alive.
    """
    return _Operation.apply(compute, *operands)  # type: ignore[no-any-return,no-untyped-call]


def stored(x: torch.Tensor, dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
    """Round x to `dtype`, and also its gradient."""
    return _apply(lambda x: (roundings.stored(x, dtype), lambda g: (roundings.stored(g, dtype),)), x)


def gradient_stored(x: torch.Tensor, dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
    """Return x as it is, and round its gradient to `dtype`."""
    return _apply(lambda x: (x.clone(), lambda g: (roundings.stored(g, dtype),)), x)


def product(x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
    """Multiply matrices, or two batches of them."""

    def multiplied(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return roundings.summed(x @ y, x.square() @ y.square(), x.shape[-1], dtype)

    return _apply(lambda x, y: (multiplied(x, y), lambda g: (multiplied(g, y.mT), multiplied(x.mT, g))), x, y)


def expanded(x: torch.Tensor, rows: int, dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
    """Repeat a vector `[n]` in each of the rows of `[rows, n]`. Its gradient is a sum over them."""

    def backward(g: torch.Tensor) -> tuple[torch.Tensor]:
        return (roundings.summed(g.sum(0), g.square().sum(0), len(g), dtype),)

    return _apply(lambda x: (x.expand(rows, -1).clone(), backward), x)


def softmax(x: torch.Tensor, dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
    def compute(x: torch.Tensor) -> tuple[torch.Tensor, Backward]:
        p = roundings.stored(x.softmax(-1), dtype)
        saved = p.detach()

        def backward(g: torch.Tensor) -> tuple[torch.Tensor]:
            # The two terms cancel if a query attends to one key, so each is rounded by itself.
            terms = roundings.stored(saved * g, dtype)
            inner = roundings.summed(terms.sum(-1), terms.square().sum(-1), saved.shape[-1], dtype)
            return (roundings.stored(terms - saved * inner.unsqueeze(-1), dtype),)

        return p, backward

    return _apply(compute, x)


def tanh(x: torch.Tensor, dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
    def compute(x: torch.Tensor) -> tuple[torch.Tensor, Backward]:
        t = roundings.stored(x.tanh(), dtype)
        saved = t.detach()
        return t, lambda g: (roundings.stored(g * (1 - saved.square()), dtype),)

    return _apply(compute, x)
