"""A stage computed in a lower precision than its dtype's: operands or the result lost bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from cgverify.oracle.arithmetic import UNIT_ROUNDOFF, Expected, bound_after_rounding
from cgverify.verification.diagnosis.failed import Failed, TapEdit, unchanged

Rounding = Callable[[torch.Tensor], torch.Tensor]

LOWER = {"bfloat16": torch.bfloat16, "float16": torch.float16}
TF32_DROPS = 13
"""Bits of a float32 mantissa."""


def less_precise(broke: Failed) -> Iterator[str]:
    """The stage with operands, or a result, that have been through a lower dtype. Not of a whole gradient."""
    if broke.stage.name.startswith("gradient"):
        return
    floats = {broke.view[name].dtype for name in broke.inputs if broke.view[name].is_floating_point()}
    for what, of_inputs, of_weights in (
        *((("from operands", True, True), ("from inputs", True, False)) if floats else ()),
        ("with weights", False, True),
    ):
        names = [
            name
            for name, rounding in _lower(floats or {broke.tap.dtype})
            if broke.agrees_with(rounding if of_inputs else unchanged, rounding if of_weights else unchanged)
        ]
        if names:
            yield f"computed {what} rounded to {' or '.join(dict.fromkeys(names))}"
    yield from _rounded_result(broke)


def _rounded_result(broke: Failed) -> Iterator[str]:
    """A tap in which every value is one of the lower dtype's, and lies within one more rounding to it.

    With operands that have been through it too, everything was computed there.
    """
    tap, answer = broke.tap, broke.answer
    for name, dtype in LOWER.items():
        if UNIT_ROUNDOFF[dtype] <= UNIT_ROUNDOFF[tap.dtype] or not torch.equal(tap.to(dtype).to(tap.dtype), tap):
            continue
        if broke.agrees(_rounded_to(answer, dtype)):
            yield f"the result was rounded to {name}"
        rounding = _of_floats(_through(dtype))
        if broke.agrees_with(rounding, rounding, partial(_rounded_to, dtype=dtype)):
            yield f"computed in {name}"


def _rounded_to(answer: Expected, dtype: torch.dtype) -> Expected:
    return Expected(answer.value, bound_after_rounding(answer.value, answer.bound, dtype), answer.dtype)


def _lower(dtypes: set[torch.dtype]) -> Iterator[tuple[str, TapEdit]]:
    """What tensors of these dtypes may have been rounded to. TF32 and float16 have mantissas of one length."""
    finest = min(UNIT_ROUNDOFF[dtype] for dtype in dtypes)
    for name, lower in LOWER.items():
        if UNIT_ROUNDOFF[lower] > finest:
            yield name, _of_floats(_through(lower))
    if torch.float32 in dtypes:
        yield "TF32", _of_floats(_cut)
        yield "TF32", _of_floats(_nearest)
    if torch.float64 in dtypes:
        yield "float32", _of_floats(_through(torch.float32))


def _through(dtype: torch.dtype) -> Rounding:
    """Rounded to a dtype and back. What is too large for it, such as a hidden score, stays as it is."""

    def through(x: torch.Tensor) -> torch.Tensor:
        lower = x.to(dtype).to(x.dtype)
        return torch.where(lower.isinf(), x, lower)

    return through


def _cut(x: torch.Tensor) -> torch.Tensor:
    """A float32 without the bits that TF32 drops; other dtypes as they are."""
    return (x.view(torch.int32) >> TF32_DROPS << TF32_DROPS).view(torch.float32) if x.dtype == torch.float32 else x


def _nearest(x: torch.Tensor) -> torch.Tensor:
    """A float32 rounded to TF32, halves away from zero; other dtypes as they are."""
    if x.dtype != torch.float32:
        return x
    return _cut((x.view(torch.int32) + (1 << (TF32_DROPS - 1))).view(torch.float32))


def _of_floats(rounding: Rounding) -> TapEdit:
    """Of inputs and weights, but not of a bias: no product takes it as an operand."""
    return lambda name, tensor: (
        rounding(tensor.contiguous()) if tensor.is_floating_point() and not name.endswith(".bias") else tensor
    )
