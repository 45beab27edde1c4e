"""A stage computed in a lower precision than its dtype's: operands or the result lost bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from cgverify.blame.failed import Change, Failed, unchanged
from cgverify.oracle.arithmetic import UNIT_ROUNDOFF, Expected, rounded

Rounding = Callable[[torch.Tensor], torch.Tensor]

TF32_DROPS = 13
"""Bits of a float32 mantissa."""


def less_precise(broke: Failed) -> Iterator[str]:
    """The stage with operands that have been through a lower dtype, or with a result that has."""
    if not broke.stage.name.startswith("gradient"):
        for what, of_input, of_weight in (
            ("from operands", True, True),
            ("from inputs", True, False),
            ("with weights", False, True),
        ):
            names = [
                name
                for name, rounding in _lower(broke.tap.dtype)
                if broke.agrees_with(rounding if of_input else unchanged, rounding if of_weight else unchanged)
            ]
            if names:
                yield f"computed {what} rounded to {' or '.join(dict.fromkeys(names))}"
    yield from _rounded_result(broke)


def _rounded_result(broke: Failed) -> Iterator[str]:
    """A tap in which every value is one of the lower dtype's, and lies within one more rounding to it."""
    tap, answer = broke.tap, broke.answer
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        lower = UNIT_ROUNDOFF[dtype] > UNIT_ROUNDOFF.get(tap.dtype, 1.0)
        if lower and torch.equal(tap.to(dtype).to(tap.dtype), tap):
            bound = rounded(answer.value, answer.bound, dtype)
            if broke.agrees(Expected(answer.value, bound, answer.dtype)):
                yield f"the result was rounded to {name}"


def _lower(dtype: torch.dtype) -> Iterator[tuple[str, Change]]:
    """The lower dtypes that tensors of `dtype` may have been through. TF32 and float16 have mantissas of one length."""
    for name, lower in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        if UNIT_ROUNDOFF[lower] > UNIT_ROUNDOFF[dtype]:
            yield name, _of_floats(_through(lower))
    if dtype == torch.float32:
        yield "TF32", _of_floats(_cut)
        yield "TF32", _of_floats(_nearest)
    if dtype == torch.float64:
        yield "float32", _of_floats(_through(torch.float32))


def _through(dtype: torch.dtype) -> Rounding:
    return lambda x: x.to(dtype).to(x.dtype)


def _cut(x: torch.Tensor) -> torch.Tensor:
    """A float32 without the bits that TF32 drops."""
    return (x.view(torch.int32) >> TF32_DROPS << TF32_DROPS).view(torch.float32)


def _nearest(x: torch.Tensor) -> torch.Tensor:
    """A float32 rounded to TF32, halves away from zero."""
    return _cut((x.view(torch.int32) + (1 << (TF32_DROPS - 1))).view(torch.float32))


def _of_floats(rounding: Rounding) -> Change:
    return lambda _, tensor: rounding(tensor.contiguous()) if tensor.is_floating_point() else tensor
