"""Wrong layer norms, through functions of a booted bridge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cgverify.selftest.entry import fault

Norm = Callable[[nn.LayerNorm, torch.Tensor], torch.Tensor]


def _norms(bridge: Any) -> tuple[Any, Any]:
    return bridge.blocks[0].ln1.original_component, bridge.ln_final.original_component


def _computed(bridge: Any, normed: Norm) -> Any:
    """Let both norms of a bridge be computed by a function of the module and its input."""
    for module in _norms(bridge):
        module.forward = lambda x, module=module: normed(module, x)
    return bridge


def _affine(module: nn.LayerNorm, normalized: torch.Tensor) -> torch.Tensor:
    return normalized * module.weight + module.bias


def wrong_eps(bridge: Any) -> Any:
    """ε is 10⁻⁶ where it must be 10⁻⁵."""
    for module in _norms(bridge):
        module.eps = 1e-6
    return bridge


def eps_missing(bridge: Any) -> Any:
    """ε is 0."""
    for module in _norms(bridge):
        module.eps = 0.0
    return bridge


def eps_outside_root(bridge: Any) -> Any:
    """(x − μ) / (√var + ε)."""

    def normed(module: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return _affine(module, centred / (centred.square().mean(-1, keepdim=True).sqrt() + module.eps)).to(x.dtype)

    return _computed(bridge, normed)


def gain_missing(bridge: Any) -> Any:
    """The gain is left out."""
    return _computed(
        bridge, lambda module, x: nn.functional.layer_norm(x, x.shape[-1:], bias=module.bias, eps=module.eps)
    )


def norm_bias_missing(bridge: Any) -> Any:
    """The bias is left out."""
    return _computed(bridge, lambda module, x: nn.functional.layer_norm(x, x.shape[-1:], module.weight, eps=module.eps))


def gain_plus_one(bridge: Any) -> Any:
    """The gain is taken as an offset from 1."""
    return _computed(
        bridge,
        lambda module, x: nn.functional.layer_norm(x, x.shape[-1:], module.weight + 1, module.bias, module.eps),
    )


def unbiased_variance(bridge: Any) -> Any:
    """The variance divides by n − 1."""

    def normed(module: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        deviation = (wide.var(-1, keepdim=True) + module.eps).sqrt()
        return _affine(module, (wide - wide.mean(-1, keepdim=True)) / deviation).to(x.dtype)

    return _computed(bridge, normed)


def mean_kept(bridge: Any) -> Any:
    """A root-mean-square norm: the mean is not taken off."""

    def normed(module: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return _affine(module, wide / (wide.square().mean(-1, keepdim=True) + module.eps).sqrt()).to(x.dtype)

    return _computed(bridge, normed)


def variance_by_cancellation(bridge: Any) -> Any:
    """var = mean(x²) − mean(x)² in the model's dtype, which loses its digits where the mean is large."""

    def normed(module: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = (x.square().mean(-1, keepdim=True) - mean.square()).clamp(min=0)
        return _affine(module, (x - mean) / (variance + module.eps).sqrt())

    return _computed(bridge, normed)


def norm_in_bfloat16(bridge: Any) -> Any:
    """Every operation is rounded to bfloat16."""

    def normed(module: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
        low = x.to(torch.bfloat16)
        centred = low - low.mean(-1, keepdim=True)
        normalized = centred / (centred.square().mean(-1, keepdim=True) + module.eps).sqrt()
        return (normalized * module.weight.bfloat16() + module.bias.bfloat16()).to(x.dtype)

    return _computed(bridge, normed)


def normed_twice(bridge: Any) -> Any:
    """The norm is applied to its own result."""
    return _computed(bridge, lambda module, x: nn.LayerNorm.forward(module, nn.LayerNorm.forward(module, x)))


_KINDS = ("ln1", "ln_final", "block")

FAULTS = (
    fault(wrong_eps, "layer_norm", "scale", kinds=_KINDS, case="stress"),
    fault(eps_missing, "layer_norm", "scale", kinds=_KINDS, case="stress"),
    *(
        fault(candidate, "layer_norm", kinds=_KINDS)
        for candidate in (
            *(gain_missing, norm_bias_missing, gain_plus_one, unbiased_variance, mean_kept, norm_in_bfloat16),
            *(normed_twice,),
        )
    ),
    fault(eps_outside_root, "layer_norm", kinds=_KINDS, case="stress"),
    fault(variance_by_cancellation, "layer_norm", kinds=_KINDS, case="stress"),
)
