"""What `torch.autocast` makes of operands, and of dtypes.

Under autocast to a low dtype every product (linear, matmul, baddbmm and their like) first rounds its operands, weights
and biases to it, and then is the product of that dtype: accumulated in float32, its result rounded to the low dtype.
A rounding has one right answer, so the oracle rounds the operands too, and only then goes to float64: the bound is that
of the low dtype's own product. float64 is not eligible: its products
stay as they are, and mixing it with a low operand raises.

Other operations compute in the dtype of what they are given, promoted as ever, unless they stand on the device's list
of those that autocast widens to float32. Layer norm, softmax and powers are on that of CUDA, none of them on the CPU's.

Source: "Autocast Op Reference" in the documentation of `torch.amp`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def operand(x: torch.Tensor, low: torch.dtype | None) -> torch.Tensor:
    """x as a product takes it under autocast to `low`; as it is without."""
    return x if low is None or x.dtype == torch.float64 else x.to(low)


def widened(x: torch.Tensor, operation: Callable[[torch.Tensor], torch.Tensor], low: torch.dtype) -> torch.Tensor:
    """x as `operation` takes it under autocast: in float32 where the device's list says so, else as it is.

    torch itself is asked what dtype comes out, on one element.
    """
    with torch.autocast(x.device.type, low):
        dtype = operation(x.new_ones(1)).dtype
    return x.to(dtype)
