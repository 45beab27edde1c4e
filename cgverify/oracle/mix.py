"""The mix z of the values by the pattern: o = p·v, B = R(o, min(γ_n, 16a√n)·p|v| + υ) for n keys.

υ is what underflow changes (`underflow` in `cgverify/oracle/arithmetic.py`). Allowed shortcuts change a, or add 2τ + τ²
to the factor (`cgverify/oracle/shortcuts.py`).
"""

from __future__ import annotations

import torch

from cgverify.oracle.arithmetic import Expected, gamma, rounded_output, underflow
from cgverify.oracle.shortcuts import Shortcuts


def mix(pattern: torch.Tensor, value: torch.Tensor, shortcuts: Shortcuts) -> Expected:
    """Return z `[batch, seq, heads, head_dim]`.

    Args:
        pattern: `[batch, heads, seq, keys]`.
        value: `[batch, heads, keys, head_dim]`.
    """
    a = shortcuts.sum_unit(value.dtype)
    n = pattern.shape[-1]
    p, v = pattern.to(torch.float64), value.to(torch.float64)
    z = (p @ v).transpose(1, 2)
    relative = min(gamma(n, a), 16 * a * n**0.5) + shortcuts.term_error(value.dtype)
    error = relative * (p.abs() @ v.abs()).transpose(1, 2)
    error = error + underflow(p, v.mT, value.dtype).transpose(-3, -2)
    return rounded_output(z, error, value.dtype)
