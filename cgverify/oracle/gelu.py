"""gelu_new, ½x(1 + tanh(√(2/π)(x + 0.044715x³))), with every operation rounded in the model's dtype.

The argument y is a chain of at most 8 roundings of one sign, so its relative error is e = 8u. With t = tanh y:

    δ = (1 − tanh²(|y|(1 − e)))|y|e + 2u|t|          the error of t: the slope sech² at the near end of the interval
    c = ½|x|(δ + u(|1 + t| + δ)) + 2η                1 + t is absolute, because it cancels
    B = c + 2u(|o| + c) + η

Where autocast widens the power, all that follows it is in the wider dtype, and so is u. ½x is not: η remains that of x.

Source of the formula: `NewGELUActivation` in transformers.
"""

from __future__ import annotations

import math

import torch

from cgverify.oracle.arithmetic import SMALLEST_SUBNORMAL, UNIT_ROUNDOFF, Expected, bounded_output


def gelu_new(x: torch.Tensor, power: torch.dtype | None = None) -> Expected:
    """Return gelu_new of x, of any shape, in the dtype of x³.

    Args:
        power: the dtype of x³; None is that of x.
    """
    dtype = power or x.dtype
    u, eta = UNIT_ROUNDOFF[dtype], SMALLEST_SUBNORMAL[x.dtype]
    wide = x.to(torch.float64)
    y = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide.pow(3))
    t = y.tanh()
    value = 0.5 * wide * (1 + t)
    e = 8 * u
    tanh_error = (1 - (y.abs() * (1 - e)).tanh().square()) * y.abs() * e + 2 * u * t.abs()
    error = 0.5 * wide.abs() * (tanh_error + u * ((1 + t).abs() + tanh_error)) + 2 * eta
    return bounded_output(value, error + 2 * u * (value.abs() + error) + eta, dtype)
