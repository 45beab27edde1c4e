"""Monte Carlo arithmetic: a float64 computation and its gradient in which every rounding of another dtype is drawn.

A whole gradient has no closed bound that is useful: errors pass through softmax and gelu before they arrive. So its
spread is sampled (Parker, *Monte Carlo Arithmetic*, 1997). Run the computation with each stored result t of unit
roundoff u off by (u|t| + η)ξ, ξ uniform in ±1, forward and backward, and see how far the gradient moves. A sum of n
terms c_i, accumulated one by one in unit roundoff a, is also off by Σ δ_k S_k. With independent δ_k uniform in ±a and
prefix sums that grow like a random walk, S_k² ~ ‖c‖²k/n, that has the standard deviation

    a ‖c‖₂ √(n/6)

Kernels that sum in blocks stay below it. Operands of spacing τ (`cgverify/oracle/shortcuts.py`) add τ‖c‖₂/√6. Every
operation saves what it stored for its backward pass. A backward pass consists of the same operations, so that it can be
differentiated too, with roundings of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch.autograd import Function

from cgverify.oracle.arithmetic import SMALLEST_SUBNORMAL, UNIT_ROUNDOFF
from cgverify.oracle.shortcuts import Shortcuts

Squares = Callable[[], torch.Tensor]
"""Compute squares, or sums of squares."""


class Roundings(Protocol):
    """The source of the errors."""

    def stored(self, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return `value` after it was rounded to `dtype`."""

    def summed(self, value: torch.Tensor, squares: Squares, terms: int, dtype: torch.dtype) -> torch.Tensor:
        """Return `value` after it was summed from `terms` terms, whose squares add up to `squares()`, in `dtype`."""


class Exact:
    """No errors: float64 itself."""

    def stored(self, value: torch.Tensor, _: torch.dtype) -> torch.Tensor:
        return value.clone()

    def summed(self, value: torch.Tensor, _: Squares, __: int, ___: torch.dtype) -> torch.Tensor:
        return value


class Drawn:
    """Errors drawn from a seed."""

    def __init__(self, seed: int, shortcuts: Shortcuts) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._shortcuts = shortcuts

    def stored(self, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        xi = torch.empty_like(value).uniform_(-1, 1, generator=self._generator)
        return value + (UNIT_ROUNDOFF[dtype] * value.abs() + SMALLEST_SUBNORMAL[dtype]) * xi

    def summed(self, value: torch.Tensor, squares: Squares, terms: int, dtype: torch.dtype) -> torch.Tensor:
        xi = torch.empty_like(value).normal_(generator=self._generator)
        unit, spacing = self._shortcuts.sum_unit(dtype), self._shortcuts.operand_spacing(dtype)
        deviation = ((unit**2 * terms + spacing**2) / 6 * squares()).sqrt()
        return self.stored(value + deviation * xi, dtype)


Backward = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor | None, ...]]
"""From the gradient of an operation's result, and the result, to the gradient of each operand that requires one."""


class _Operation(Function):
    """An operation that comes with its own backward pass, which consists of operations again."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[..., tuple[torch.Tensor, Backward]], *operands: torch.Tensor) -> Any:
        value, ctx.backward_of = compute(*operands)
        ctx.save_for_backward(value)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return None, *ctx.backward_of(gradients[0], *ctx.saved_tensors)


def _apply(compute: Callable[..., tuple[torch.Tensor, Backward]], *operands: torch.Tensor) -> torch.Tensor:
    """Apply a function of tensors that returns a value and its backward pass.

    The backward pass must not refer to the value itself, but to the one that it is given: autograd would keep both
    alive, and could not differentiate it again.
    """
    return _Operation.apply(compute, *operands)  # type: ignore[no-any-return,no-untyped-call]


def stored(x: torch.Tensor, dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
    """Round x to `dtype`, and also its gradient."""
    return _apply(lambda x: (roundings.stored(x, dtype), lambda g, _: (stored(g, dtype, roundings),)), x)


def value_stored(x: torch.Tensor, dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
    """Round x to `dtype`, and leave its gradient as it is."""
    return _apply(lambda x: (roundings.stored(x, dtype), lambda g, _: (g,)), x)


def gradient_stored(x: torch.Tensor, dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
    """Return x as it is, and round its gradient to `dtype`."""
    return _apply(lambda x: (x.clone(), lambda g, _: (stored(g, dtype, roundings),)), x)


def product(
    x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype, roundings: Roundings, squares: Squares | None = None
) -> torch.Tensor:
    """Multiply matrices, or two batches of them.

    Args:
        squares: the squares of y's elements, if they are needed elsewhere too: y may be a large weight.
    """
    of_y = squares or cache(lambda: y.detach().square())

    def compute(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, Backward]:
        def backward(g: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            of_x = product(g, y.mT, dtype, roundings, lambda: of_y().mT) if x.requires_grad else None
            return of_x, product(x.mT, g, dtype, roundings) if y.requires_grad else None

        return roundings.summed(x @ y, lambda: x.square() @ of_y(), x.shape[-1], dtype), backward

    return _apply(compute, x, y)


def expanded(x: torch.Tensor, shape: Sequence[int], dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
    """Repeat x as `Tensor.expand` does. Its gradient is a sum over what is repeated."""

    def backward(g: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor]:
        return (_summed_to(g, x.shape, dtype, roundings),)

    return _apply(lambda x: (x.expand(*shape).clone(), backward), x)


def _summed_to(g: torch.Tensor, shape: torch.Size, dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
    """Add up what `expanded` repeated."""

    def compute(g: torch.Tensor) -> tuple[torch.Tensor, Backward]:
        terms = g.numel() // max(shape.numel(), 1)
        total = roundings.summed(g.sum_to_size(shape), lambda: g.square().sum_to_size(shape), terms, dtype)
        return total, lambda h, _: (expanded(h, g.shape, dtype, roundings),)

    return _apply(compute, g)


def softmax(x: torch.Tensor, dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
    def backward(g: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor]:
        # The two terms cancel if a query attends to one key, so each is rounded by itself.
        terms = stored(p * g, dtype, roundings)
        inner = _summed_to(terms, torch.Size((*terms.shape[:-1], 1)), dtype, roundings)
        return (stored(terms - p * inner, dtype, roundings),)

    return _apply(lambda x: (roundings.stored(x.softmax(-1), dtype), backward), x)


def tanh(x: torch.Tensor, dtype: torch.dtype, roundings: Roundings) -> torch.Tensor:
    def backward(g: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor]:
        return (stored(g * (1 - t.square()), dtype, roundings),)

    return _apply(lambda x: (roundings.stored(x.tanh(), dtype), backward), x)
