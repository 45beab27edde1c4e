"""What `torch.autocast` does to operands and dtypes.

Under autocast to a low dtype every product (linear, matmul, baddbmm, …) first rounds its operands, weights and biases
to that dtype. It is then the product of that dtype: accumulated in float32, with the result rounded to the low dtype.
A rounding has one right answer, so the oracle rounds the operands too before it goes to float64, and the bound is that
of the low dtype's own product. float64 is not eligible: its products stay as they are, and mixing it with a low operand
raises.

Other operations compute in the dtype of their operands, promoted as usual, unless they are on the device's list of
those that autocast widens to float32. Layer norm, softmax and powers are on CUDA's list and not on the CPU's.

Source: "Autocast Op Reference" in the documentation of `torch.amp`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def operand(x: torch.Tensor, low: torch.dtype | None) -> torch.Tensor:
    """Return x as a product takes it under autocast to `low`, or unchanged if `low` is None."""
    return x if low is None or x.dtype == torch.float64 else x.to(low)


def widened(
    dtype: torch.dtype, operation: Callable[[torch.Tensor], torch.Tensor], low: torch.dtype, device: str
) -> torch.dtype:
    """Return the dtype that `operation` computes in under autocast to `low`, if its operand has `dtype`.

    It is that of torch's own result for one element on a device of the type `device`: float32 if the device's list says
    so, otherwise `dtype`.
    """
    with torch.autocast(device, low):
        return operation(torch.ones(1, dtype=dtype, device=device)).dtype
