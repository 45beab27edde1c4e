"""Wrong dropout, and wrong or missing gradients. The forward in eval mode is correct."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from cgverify.selftest.candidates import Implementation, Rows, by_name, named_faults
from cgverify.selftest.seeded.seeding import activated, attention, changed


class _Scaled(Function):
    """The identity, with a scaled gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def _scale_gradient(x: Tensor, factor: float) -> Any:
    return _Scaled.apply(x, factor)  # type: ignore[no-untyped-call]


def _detach_one_head(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    return torch.cat((query[:, :, :1].detach(), query[:, :, 1:]), 2), key, value


def _drop_scores(bridge: Any, _: Any, scores: Tensor, dtype: torch.dtype) -> Any:
    return bridge._apply_attn_dropout(scores).softmax(-1).to(dtype)


def _unscaled_dropout(_: Any, drop: Any, pattern: Tensor) -> Any:
    kept = drop(torch.ones_like(pattern))
    return pattern * (kept > 0)


def _draw_first(bridge: Any, pattern_of: Any, *args: Any) -> Any:
    if bridge.training:
        torch.rand(1)
    return pattern_of(*args)


def _without_residual_dropout(_: Any, wrap: Any, original: nn.Module) -> None:
    wrap(original)
    original.resid_dropout = nn.Identity()


def _projected(change: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]) -> Implementation:
    """Change q, k and v, `[batch, seq, heads, head_dim]`."""
    return attention(_project=lambda _, project, hidden_states: change(*project(hidden_states)))


def _detach_weights(bridge: Any, project: Any, hidden_states: Tensor) -> Any:
    for projection in (bridge.q, bridge.k, bridge.v):
        projection.original_component.weight.requires_grad_(False)
    return project(hidden_states)


_RESIDUAL_DROPOUT: Rows = {
    "ResidualDropoutMissing": (
        "`resid_dropout` is not applied, as in TransformerLens.",
        attention(set_original_component=_without_residual_dropout),
    ),
}
_DROPOUTS: Rows = {
    "PatternDropoutMissing": (
        "`attn_dropout` is not applied.",
        attention(_apply_attn_dropout=lambda _, __, pattern: pattern),
    ),
    "DropoutBeforeSoftmax": ("Scores are dropped, not weights.", attention(_pattern_of=_drop_scores)),
    "DropoutScaleMissing": (
        "Weights that are kept are not scaled by 1 / (1 − p).",
        attention(_apply_attn_dropout=_unscaled_dropout),
    ),
    "ScaledByOneAndP": (
        "Weights that are kept are scaled by 1 + p instead of 1 / (1 − p), a hundredth less.",
        attention(
            _apply_attn_dropout=lambda bridge, drop, pattern: drop(pattern) * (0.99 if bridge.training else 1),
        ),
    ),
    "DrawsOnceMore": ("Another number is drawn from the random state first.", attention(_pattern_of=_draw_first)),
}
_DROPOUT_IN_EVAL: Rows = {
    "DropoutInEvalMode": (
        "The pattern is dropped out at p = 0.1 in both modes.",
        attention(_apply_attn_dropout=lambda _, __, pattern: nn.functional.dropout(pattern, 0.1)),
    ),
}
_MLP_DROPOUT: Rows = {
    "mlp_dropout_missing": (
        "The dropout of the MLP is not applied.",
        changed(lambda bridge: setattr(bridge.blocks[0].mlp.original_component, "dropout", nn.Identity())),
    ),
}
_VALUE_DROPOUT: Rows = {
    "DropsFromValuesToo": (
        "Values are dropped out as well as weights.",
        attention(
            _mix=lambda bridge, mix, pattern, value: mix(pattern, nn.functional.dropout(value, 0.1, bridge.training))
        ),
    ),
}
_GRADIENTS: Rows = {
    "PatternDetached": (
        "No gradient passes through the pattern.",
        attention(_pattern_of=lambda _, pattern_of, *args: pattern_of(*args).detach()),
    ),
    "KeysDetached": ("No gradient reaches K.", _projected(lambda query, key, value: (query, key.detach(), value))),
    "OneHeadDetached": ("No gradient reaches the queries of head 0.", _projected(_detach_one_head)),
    "OutputGradientReversed": (
        "The sign of the output's gradient is reversed.",
        attention(_output=lambda _, output, z: _scale_gradient(output(z), -1.0)),
    ),
}
_GRADIENT_SCALE: Rows = {
    "ValueGradientScaled": (
        "The gradient of V is multiplied by 1.02.",
        _projected(lambda query, key, value: (query, key, _scale_gradient(value, 1.02))),
    ),
}
_WEIGHT_GRADIENTS: Rows = {
    "ProjectionWeightsDetached": (
        "Q, K and V are computed from weights that need no gradient.",
        attention(_project=_detach_weights),
    ),
}
_MLP_GRADIENT: Rows = {
    "mlp_gradient_missing": (
        "No gradient passes through the activation.",
        activated(lambda activation, x: activation(x).detach()),
    ),
}
_MLP = ("mlp", "block")

FAULTS = (
    *named_faults(__name__, _RESIDUAL_DROPOUT, "resid_dropout", case="train"),
    *named_faults(__name__, _DROPOUTS, "attn_dropout", case="train"),
    *named_faults(__name__, _DROPOUT_IN_EVAL, "softmax", "attn_dropout"),
    *named_faults(__name__, _MLP_DROPOUT, "resid_dropout", kinds=_MLP, case="train"),
    *named_faults(__name__, _VALUE_DROPOUT, "mix", case="train"),
    *named_faults(__name__, _GRADIENTS, "gradient", case="backward"),
    *named_faults(__name__, _GRADIENT_SCALE, "gradient", "gradient_scale", case="backward"),
    *named_faults(__name__, _WEIGHT_GRADIENTS, "gradient", "forward", case="backward"),
    *named_faults(__name__, _MLP_GRADIENT, "gradient", kinds=_MLP, case="backward"),
)
__getattr__ = by_name(FAULTS)
