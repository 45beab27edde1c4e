"""Layer norm, by any of the usual formulas.

With mean μ, σ = √(var + ε), x̂ = (x − μ)/σ, gain g and bias b: ρ = 16a√n is the relative error of a sum,
e = ρ·rms(x) + a|μ| + 2η the absolute error of the mean with η the smallest subnormal, and v = ρ + 4a + (e/σ)² the
relative error of the variance, which the mean's error enters only squared, since Σ(x − μ) = 0. The inverse root halves
v, and the affine map adds 2a:

    normalized   (e + 2a(|x| + |μ|))/σ + |x̂|(v/2 + 4a)                                  in float32
    scale σ      σ(v/2 + 3a)                                                            in float32
    output       B = R(o, |g|(e + 2a(|x| + |μ|))/σ + |g x̂|(v/2 + 4a) + 2a(|g x̂| + |b|))

If a hook returned the scale s, or x̂, there are two stages:

    x̂ from s     B = R(o, (e + 2a(|x| + |μ|))/|s|)
    output       B = R(o, β|g|(1 + 2a) + 2a(|g x̂| + |b|)) with β the bound of x̂, 0 if it was observed
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cgverify.oracle.arithmetic import SMALLEST_SUBNORMAL, UNIT_ROUNDOFF, Expected, accumulator, rounded_output


@dataclass(frozen=True)
class _Moments:
    centred: torch.Tensor
    sigma: torch.Tensor
    numerator: torch.Tensor
    """Absolute error of x − μ."""
    variance: torch.Tensor
    """Relative error of var + ε, v."""
    a: float


def layer_norm(x: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor, eps: float) -> Expected:
    """Normalize x `[…, n]`, in the dtype of x."""
    moments = _moments(x, eps)
    g, b = gain.to(torch.float64), bias.to(torch.float64)
    scaled = g * moments.centred / moments.sigma
    error = (
        g.abs() * moments.numerator / moments.sigma
        + scaled.abs() * (moments.variance / 2 + 4 * moments.a)
        + 2 * moments.a * (scaled.abs() + b.abs())
    )
    return rounded_output(scaled + b, error, x.dtype)


def normalized(x: torch.Tensor, eps: float) -> Expected:
    """Return x̂, before gain and bias, as TransformerLens's `hook_normalized` shows it: at least float32."""
    moments = _moments(x, eps)
    value = moments.centred / moments.sigma
    error = moments.numerator / moments.sigma + value.abs() * (moments.variance / 2 + 4 * moments.a)
    return rounded_output(value, error, accumulator(x.dtype))


def scale(x: torch.Tensor, eps: float) -> Expected:
    """Return σ, `[…, 1]`, as TransformerLens's `hook_scale` shows it: at least float32."""
    moments = _moments(x, eps)
    error = moments.sigma * (moments.variance / 2 + 3 * moments.a)
    return rounded_output(moments.sigma, error, accumulator(x.dtype))


def normalized_by(x: torch.Tensor, given_scale: torch.Tensor) -> Expected:
    """Return (x − μ)/s for a scale s that a hook returned, `[…, 1]`, in the dtype of s."""
    moments = _moments(x, 0.0)
    divisor = given_scale.to(torch.float64)
    return rounded_output(moments.centred / divisor, moments.numerator / divisor.abs(), given_scale.dtype)


def affine(x_hat: Expected, gain: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype) -> Expected:
    """Return g·x̂ + b in `dtype`, for an x̂ that a hook returned or that comes from `normalized_by`."""
    a = UNIT_ROUNDOFF[accumulator(x_hat.dtype)]
    g, b = gain.to(torch.float64), bias.to(torch.float64)
    scaled = g * x_hat.value
    error = g.abs() * x_hat.bound * (1 + 2 * a) + 2 * a * (scaled.abs() + b.abs())
    return rounded_output(scaled + b, error, dtype)


def _moments(x: torch.Tensor, eps: float) -> _Moments:
    a = UNIT_ROUNDOFF[accumulator(x.dtype)]
    rho = 16 * a * x.shape[-1] ** 0.5
    wide = x.to(torch.float64)
    mean = wide.mean(-1, keepdim=True)
    centred = wide - mean
    sigma = (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    mean_error = rho * wide.square().mean(-1, keepdim=True).sqrt() + a * mean.abs()
    mean_error = mean_error + 2 * SMALLEST_SUBNORMAL[accumulator(x.dtype)]
    return _Moments(
        centred=centred,
        sigma=sigma,
        numerator=mean_error + 2 * a * (wide.abs() + mean.abs()),
        variance=rho + 4 * a + (mean_error / sigma).square(),
        a=a,
    )
