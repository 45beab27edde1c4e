"""z: the values mixed by the pattern. o = p·v, B = R(o, min(γ_n, 16a√n)·p|v|) for n keys.

Allowed shortcuts change a, or add 2τ + τ² to the factor (`cgverify/oracle/shortcuts.py`).
"""

from __future__ import annotations

import torch

from cgverify.oracle.arithmetic import Expected, expected, gamma, rounded
from cgverify.oracle.shortcuts import sum_unit, term_error


def mix(pattern: torch.Tensor, value: torch.Tensor) -> Expected:
    """z `[batch, seq, heads, head_dim]`.

    Args:
        pattern: `[batch, heads, seq, keys]`.
        value: `[batch, heads, keys, head_dim]`.
    """
    a = sum_unit(value.dtype)
    n = pattern.shape[-1]
    p, v = pattern.to(torch.float64), value.to(torch.float64)
    z = (p @ v).transpose(1, 2)
    bound = (min(gamma(n, a), 16 * a * n**0.5) + term_error(value.dtype)) * (p.abs() @ v.abs()).transpose(1, 2)
    return expected(z, rounded(z, bound, value.dtype), value.dtype)
