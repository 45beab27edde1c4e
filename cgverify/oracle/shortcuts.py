"""Shortcuts that a user allows products to take (`--allow`), and by how much they widen the bounds.

| allowed | what torch may then do | effect on the bound |
|---|---|---|
| `tf32` | take float32 operands with 10 bits of mantissa, or as two bfloat16 numbers | τ = 2⁻¹⁰ |
| `bfloat16` | take float32 operands in bfloat16 | τ = 2⁻⁷ |
| `reduction` | add up partial sums of 16-bit products in 16 bits | a = u of their dtype |

τ is the relative spacing of the values that an operand may become. It is off by τ/2 if it is rounded to nearest, and by
up to τ if its last bits are not read: hardware documentation describes both. Each term x_i w_i is then off by at most
2τ + τ² of itself. The errors of the 2n operands lie in intervals of width τ, with one mean of at most τ/2, so for a sum
y of n terms, by Hoeffding's inequality with λ = 8, doubled as in `cgverify/oracle/product.py`:

    E_τ = min( (2τ + τ²) Σ|x_i w_i| ,  τ|y| + 8√2·τ‖x∘w‖₂ )        E' = E(1 + 2τ + τ²) + E_τ

Sources: "Numerical accuracy" and `set_float32_matmul_precision` in the documentation of torch; NVIDIA, *Accelerating AI
Training with NVIDIA TF32 Tensor Cores*.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from cgverify.oracle.arithmetic import HALVES, UNIT_ROUNDOFF, accumulator

_SPACING = {"bfloat16": 2.0**-7, "tf32": 2.0**-10}
"""τ of each shortcut, widest first: the first one that is allowed applies."""


@dataclass(frozen=True)
class Shortcuts:
    """The shortcuts that products may take."""

    allowed: Collection[str] = ()
    """Names of the table above."""

    def sum_unit(self, dtype: torch.dtype) -> float:
        """Return a, the unit roundoff in which a product of `dtype` operands is summed."""
        return UNIT_ROUNDOFF[dtype if dtype in HALVES and "reduction" in self.allowed else accumulator(dtype)]

    def operand_spacing(self, dtype: torch.dtype) -> float:
        """Return τ, the relative spacing that a product may reduce `dtype` operands to; 0 if it uses them unchanged."""
        if dtype != torch.float32:
            return 0.0
        return next((spacing for name, spacing in _SPACING.items() if name in self.allowed), 0.0)

    def operands_error(self, value: torch.Tensor, squares: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the second form of E_τ, for a product `value` whose squared terms add up to `squares`."""
        return self.operand_spacing(dtype) * (value.abs() + 8 * (2 * squares).sqrt())

    def term_error(self, dtype: torch.dtype) -> float:
        """Return 2τ + τ², the relative error of one term x_i w_i."""
        spacing = self.operand_spacing(dtype)
        return 2 * spacing + spacing**2


NO_SHORTCUTS = Shortcuts()
