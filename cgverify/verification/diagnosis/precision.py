"""A stage that is computed in a lower precision than its dtype's: operands or the result lost bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from cgverify.oracle.arithmetic import UNIT_ROUNDOFF, Expected, bound_after_rounding
from cgverify.verification.diagnosis.mismatch import Mismatch, TensorEdit, unchanged

LOWER = {"bfloat16": torch.bfloat16, "float16": torch.float16}
TF32_DROPS = 13
"""Bits of a float32 mantissa that TF32 does not have."""


def less_precise(mismatch: Mismatch) -> Iterator[str]:
    """Hypothesis: operands or the result have been rounded to a lower dtype. Not tried on a whole gradient."""
    if mismatch.stage.name.startswith("gradient"):
        return
    dtypes = {mismatch.tensors[name].dtype for name in mismatch.inputs if mismatch.tensors[name].is_floating_point()}
    for what, of_inputs, of_weights in (
        *((("from operands", True, True), ("from inputs", True, False)) if dtypes else ()),
        ("with weights", False, True),
    ):
        names = [
            name
            for name, rounding in _lower_roundings(dtypes or {mismatch.tap.dtype})
            if mismatch.agrees_with(rounding if of_inputs else unchanged, rounding if of_weights else unchanged)
        ]
        if names:
            yield f"computed {what} rounded to {' or '.join(dict.fromkeys(names))}"
    yield from _rounded_result(mismatch)


def _rounded_result(mismatch: Mismatch) -> Iterator[str]:
    """Hypothesis: the result was rounded to a lower dtype, or, if its operands were too, all of it was computed there.

    Tried on a tap whose values all exist in the lower dtype.
    """
    tap, expected = mismatch.tap, mismatch.expected
    for name, dtype in LOWER.items():
        if UNIT_ROUNDOFF[dtype] <= UNIT_ROUNDOFF[tap.dtype] or not torch.equal(tap.to(dtype).to(tap.dtype), tap):
            continue
        if mismatch.agrees(_rounded_to(expected, dtype)):
            yield f"the result was rounded to {name}"
        rounding = _of_operands(partial(_through, dtype))
        if mismatch.agrees_with(rounding, rounding, partial(_rounded_to, dtype=dtype)):
            yield f"computed in {name}"


def _rounded_to(expected: Expected, dtype: torch.dtype) -> Expected:
    bound = bound_after_rounding(expected.value, expected.bound, dtype)
    return Expected(expected.value, bound, expected.dtype)


def _lower_roundings(dtypes: set[torch.dtype]) -> Iterator[tuple[str, TensorEdit]]:
    """Yield what tensors of these dtypes may have been rounded to. TF32 and float16 have mantissas of one length."""
    finest = min(UNIT_ROUNDOFF[dtype] for dtype in dtypes)
    for name, lower in LOWER.items():
        if UNIT_ROUNDOFF[lower] > finest:
            yield name, _of_operands(partial(_through, lower))
    if torch.float32 in dtypes:
        yield "TF32", _of_operands(_truncated_to_tf32)
        yield "TF32", _of_operands(_rounded_to_tf32)
    if torch.float64 in dtypes:
        yield "float32", _of_operands(partial(_through, torch.float32))


def _through(dtype: torch.dtype, x: torch.Tensor) -> torch.Tensor:
    """Round to a dtype and back. Values that are too large for it, such as hidden scores, stay as they are."""
    lower = x.to(dtype).to(x.dtype)
    return torch.where(lower.isinf(), x, lower)


def _truncated_to_tf32(x: torch.Tensor) -> torch.Tensor:
    """Drop the bits of a float32 that TF32 does not have; other dtypes stay as they are."""
    return (x.view(torch.int32) >> TF32_DROPS << TF32_DROPS).view(torch.float32) if x.dtype == torch.float32 else x


def _rounded_to_tf32(x: torch.Tensor) -> torch.Tensor:
    """Round a float32 to TF32, halves away from zero; other dtypes stay as they are."""
    if x.dtype != torch.float32:
        return x
    return _truncated_to_tf32((x.view(torch.int32) + (1 << (TF32_DROPS - 1))).view(torch.float32))


def _of_operands(rounding: Callable[[torch.Tensor], torch.Tensor]) -> TensorEdit:
    """Round inputs and weights, but not a bias, which is not an operand of a product."""
    return lambda name, tensor: (
        rounding(tensor.contiguous()) if tensor.is_floating_point() and not name.endswith(".bias") else tensor
    )
