"""Wrong layer norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from cgverify.selftest.candidates import Implementation, Rows, by_name, named_faults
from cgverify.selftest.seeded.seeding import NORMS, changed, computed, widened


def _with_eps(eps: float) -> Implementation:
    def change(bridge: Any) -> None:
        for path in NORMS:
            bridge.get_submodule(path).original_component.eps = eps

    return changed(change)


def _affine(module: nn.LayerNorm, normalized: Tensor) -> Tensor:
    return normalized * module.weight + module.bias


def _eps_outside_root(module: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return _affine(module, centred / (centred.square().mean(-1, keepdim=True).sqrt() + module.eps)).to(x.dtype)


def _unbiased(module: nn.LayerNorm, x: Tensor) -> Tensor:
    wide = widened(x)
    deviation = (wide.var(-1, keepdim=True) + module.eps).sqrt()
    return _affine(module, (wide - wide.mean(-1, keepdim=True)) / deviation).to(x.dtype)


def _root_mean_square(module: nn.LayerNorm, x: Tensor) -> Tensor:
    wide = widened(x)
    return _affine(module, wide / (wide.square().mean(-1, keepdim=True) + module.eps).sqrt()).to(x.dtype)


def _cancelling(module: nn.LayerNorm, x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = (x.square().mean(-1, keepdim=True) - mean.square()).clamp(min=0)
    return _affine(module, (x - mean) / (variance + module.eps).sqrt())


def _in_bfloat16(module: nn.LayerNorm, x: Tensor) -> Tensor:
    low = x.to(torch.bfloat16)
    centred = low - low.mean(-1, keepdim=True)
    normalized = centred / (centred.square().mean(-1, keepdim=True) + module.eps).sqrt()
    return (normalized * module.weight.bfloat16() + module.bias.bfloat16()).to(x.dtype)


_NORMS: Rows = {
    "gain_missing": (
        "The gain is left out.",
        lambda module, x: layer_norm(x, x.shape[-1:], bias=module.bias, eps=module.eps),
    ),
    "norm_bias_missing": (
        "The bias is left out.",
        lambda module, x: layer_norm(x, x.shape[-1:], module.weight, eps=module.eps),
    ),
    "gain_plus_one": (
        "The gain is used as an offset from 1.",
        lambda module, x: layer_norm(x, x.shape[-1:], module.weight + 1, module.bias, module.eps),
    ),
    "unbiased_variance": ("The variance is divided by n − 1.", _unbiased),
    "mean_kept": ("A root-mean-square norm, which does not subtract the mean.", _root_mean_square),
    "norm_in_bfloat16": ("Every operation is rounded to bfloat16.", _in_bfloat16),
    "normed_twice": (
        "The norm is applied to its own result.",
        lambda module, x: nn.LayerNorm.forward(module, nn.LayerNorm.forward(module, x)),
    ),
}
_NORMS_UNDER_STRESS: Rows = {
    "eps_outside_root": ("ε is added to the root: (x − μ) / (√var + ε).", _eps_outside_root),
    "variance_by_cancellation": (
        "The variance is mean(x²) − mean(x)² in the dtype of the model, which loses its digits if the mean is large.",
        _cancelling,
    ),
}
_EPS: Rows = {
    "wrong_eps": ("ε is 10⁻⁶ instead of 10⁻⁵.", 1e-6),
    "eps_missing": ("ε is 0.", 0.0),
}
_KINDS = ("ln1", "ln_final", "block")

FAULTS = (
    *named_faults(__name__, _EPS, "layer_norm", "scale", seed=_with_eps, kinds=_KINDS, case="stress"),
    *named_faults(__name__, _NORMS, "layer_norm", seed=lambda norm: computed(norm, *NORMS), kinds=_KINDS),
    *named_faults(
        __name__,
        _NORMS_UNDER_STRESS,
        "layer_norm",
        seed=lambda norm: computed(norm, *NORMS),
        kinds=_KINDS,
        case="stress",
    ),
)
__getattr__ = by_name(FAULTS)
