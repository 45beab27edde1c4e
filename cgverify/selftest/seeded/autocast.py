"""Faults that only autocast shows: an operation that leaves it, or that casts what autocast leaves alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cgverify.bridge.wrapped_attention import TABLE_PER_ATTENTION
from cgverify.selftest.candidates import Rows, by_name, named_faults
from cgverify.selftest.seeded.block import block
from cgverify.selftest.seeded.seeding import NORMS, attention, cast_rotated_as, computed, through


def _low(x: Tensor) -> torch.dtype:
    """Return the dtype of autocast, or x's own if autocast is off."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _rounded(x: Tensor) -> Tensor:
    """Round x to the dtype of autocast and cast it back."""
    return through(x, _low(x))


def product_dtype(operand: Tensor) -> torch.dtype:
    """Return the dtype of a product of such operands: autocast leaves float64 alone."""
    return operand.dtype if operand.dtype == torch.float64 else _low(operand)


def outside_autocast(x: Tensor) -> torch.autocast:
    """Switch autocast off on the device of x."""
    return torch.autocast(x.device.type, enabled=False)


def _wide_scores(_: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    with outside_autocast(query):
        return scores(query, key, mask)


def _rounded_again(_: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    return _rounded(scores(query, key, mask))


def _rounded_mask(_: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    lowest = torch.finfo(mask.dtype).min
    return scores(query, key, torch.where(mask > lowest, _rounded(mask), mask))


def _rounded_rotation(_: Any, rotate: Any, query: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    low = _low(query)
    query, key = rotate(query, *others)
    return through(query, low), through(key, low)


def _wide_mix(_: Any, mix: Any, pattern: Tensor, value: Tensor) -> Any:
    low = product_dtype(value)
    with outside_autocast(value):
        return mix(pattern, value).to(low)


def _wide_linear(module: nn.Linear, x: Tensor) -> Tensor:
    low = product_dtype(module.weight)
    with outside_autocast(x):
        return nn.functional.linear(x.to(module.weight.dtype), module.weight, module.bias).to(low)


_SCORES: Rows = {
    "ScoresOutsideAutocast": (
        "The product of the scores stays float32, and its operands are not rounded.",
        attention(_scores=_wide_scores, set_original_component=cast_rotated_as(lambda _: TABLE_PER_ATTENTION)),
    ),
    "ScoresRoundedAgain": (
        "Masked and scaled scores are rounded to the dtype of autocast, as their product was.",
        attention(_scores=_rounded_again),
    ),
    "MaskInLowPrecision": (
        "Finite values of the mask are rounded before it is added.",
        attention(_scores=_rounded_mask),
    ),
}
_ROTATION: Rows = {
    "RotatedInLowPrecision": (
        "Rotated q and k are rounded, which their product does too: no later tensor changes.",
        attention(_rotate=_rounded_rotation),
    ),
}
_SOFTMAX: Rows = {
    "SoftmaxInLowPrecision": (
        "The scores are rounded before the softmax.",
        attention(_pattern_of=lambda _, pattern_of, scores, dtype: pattern_of(_rounded(scores), dtype)),
    ),
}
_MIX: Rows = {
    "MixOutsideAutocast": (
        "Pattern and values are mixed as they are, and z is rounded: with a float32 cache the pattern is not.",
        attention(_mix=_wide_mix),
    ),
}
_CACHE: Rows = {
    "CacheInLowPrecision": (
        "Keys are cached in the dtype of autocast, not in that of the hidden states.",
        attention(_extend_cache=lambda _, extend, cache, key, value: extend(cache, key.to(_low(key)), value)),
    ),
    "KeysRoundedInCache": (
        "Keys are rounded before they are cached in their own dtype.",
        attention(_extend_cache=lambda _, extend, cache, key, value: extend(cache, _rounded(key), value)),
    ),
}
_NORM: Rows = {
    "norm_in_low_precision": (
        "Layer norms round their inputs.",
        computed(lambda module, x: nn.LayerNorm.forward(module, _rounded(x)), *NORMS),
    ),
}
_OUTPUT: Rows = {
    "output_outside_autocast": (
        "The output projection does not round its weights, only its result.",
        computed(_wide_linear, "blocks.0.attn.o"),
    ),
}
_SUM: Rows = {
    "residual_in_low_precision": (
        "The block rounds its residual before the sum.",
        block(total=lambda residual, _, attended, mlp: attended + mlp + _rounded(residual)),
    ),
}

FAULTS = (
    *named_faults(__name__, _SCORES, "scores", "rope", case="autocast"),
    *named_faults(__name__, _ROTATION, "rope", case="autocast"),
    *named_faults(__name__, _SOFTMAX, "softmax", case="autocast"),
    *named_faults(__name__, _MIX, "mix", case="autocast"),
    *named_faults(__name__, _CACHE, "cache", case="autocast"),
    *named_faults(__name__, _NORM, "layer_norm", kinds=("ln1", "ln_final", "block"), case="autocast"),
    *named_faults(__name__, _OUTPUT, "output", kinds=("attn.o", "attn", "block"), case="autocast"),
    *named_faults(__name__, _SUM, "block_sum", kinds=("block",), case="autocast"),
)
__getattr__ = by_name(FAULTS)
