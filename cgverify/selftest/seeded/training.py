"""Wrong dropout, and wrong or missing gradients: the forward in eval mode is right."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.selftest.entry import fault
from cgverify.selftest.seeded.feed_forward import activated_by

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class ResidualDropoutMissing(CodeGenAttentionBridge):
    """`resid_dropout` is not applied, as in TransformerLens."""

    def set_original_component(self, original_component: nn.Module) -> None:
        super().set_original_component(original_component)
        original_component.resid_dropout = nn.Identity()


class PatternDropoutMissing(CodeGenAttentionBridge):
    """`attn_dropout` is not applied."""

    def _apply_attn_dropout(self, attn_weights: torch.Tensor) -> torch.Tensor:
        return attn_weights


class DropoutBeforeSoftmax(CodeGenAttentionBridge):
    """Scores are dropped, not weights."""

    def _pattern_of(self, scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        dropped: torch.Tensor = super()._apply_attn_dropout(scores)
        return dropped.softmax(-1).to(dtype)


class DropoutScaleMissing(CodeGenAttentionBridge):
    """What is kept is not scaled by 1 / (1 − p)."""

    def _apply_attn_dropout(self, attn_weights: torch.Tensor) -> torch.Tensor:
        dropout: Any = self.original_component.attn_dropout
        kept: torch.Tensor = super()._apply_attn_dropout(attn_weights)
        return kept * (1 - dropout.p) if dropout.training and dropout.p else kept


class DropoutInEvalMode(CodeGenAttentionBridge):
    """The pattern is dropped out at p = 0.1 whatever the mode."""

    def _apply_attn_dropout(self, attn_weights: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(attn_weights, 0.1)


def mlp_dropout_missing(bridge: Any) -> Any:
    """The MLP's dropout is not applied."""
    bridge.blocks[0].mlp.original_component.dropout = nn.Identity()
    return bridge


class PatternDetached(CodeGenAttentionBridge):
    """No gradient passes through the pattern."""

    def _pattern_of(self, scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return super()._pattern_of(scores, dtype).detach()


class KeysDetached(CodeGenAttentionBridge):
    """No gradient reaches K."""

    def _project(self, hidden_states: torch.Tensor) -> Tensors:
        query, key, value = super()._project(hidden_states)
        return query, key.detach(), value


class OneHeadDetached(CodeGenAttentionBridge):
    """No gradient reaches the queries of head 0."""

    def _project(self, hidden_states: torch.Tensor) -> Tensors:
        query, key, value = super()._project(hidden_states)
        return torch.cat((query[:, :, :1].detach(), query[:, :, 1:]), 2), key, value


class _Scaled(torch.autograd.Function):
    """The identity, whose gradient is scaled."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0] * ctx.factor, None


class ValueGradientScaled(CodeGenAttentionBridge):
    """The gradient of V is 1.01 times too large."""

    def _project(self, hidden_states: torch.Tensor) -> Tensors:
        query, key, value = super()._project(hidden_states)
        return query, key, _Scaled.apply(value, 1.01)  # type: ignore[no-untyped-call]


class OutputGradientReversed(CodeGenAttentionBridge):
    """The gradient of the output has the other sign."""

    def _output(self, z: torch.Tensor) -> torch.Tensor:
        reversed_: torch.Tensor = _Scaled.apply(super()._output(z), -1.0)  # type: ignore[no-untyped-call]
        return reversed_


class ProjectionWeightsDetached(CodeGenAttentionBridge):
    """Q, K and V are computed from weights that take no gradient."""

    def _project(self, hidden_states: torch.Tensor) -> Tensors:
        for projection in (self.q, self.k, self.v):
            projection.original_component.weight.requires_grad_(False)
        return super()._project(hidden_states)


def mlp_gradient_missing(bridge: Any) -> Any:
    """No gradient passes through the activation."""
    activation = bridge.blocks[0].mlp.original_component.act
    return activated_by(bridge, lambda x: activation(x).detach())


class ScaledByOneAndP(CodeGenAttentionBridge):
    """1 + p for 1 / (1 − p), one part in a hundred off."""

    def _apply_attn_dropout(self, attn_weights: Any) -> Any:
        dropped = super()._apply_attn_dropout(attn_weights)
        return dropped * 0.99 if self.training else dropped


class DrawsOnceMore(CodeGenAttentionBridge):
    """Something else takes numbers from the random state first."""

    def _pattern_of(self, scores: Any, dtype: Any) -> Any:
        torch.rand(1)
        return super()._pattern_of(scores, dtype)


class DropsFromValuesToo(CodeGenAttentionBridge):
    """Values are dropped out as well as weights."""

    def _mix(self, pattern: Any, value: Any) -> Any:
        return super()._mix(pattern, nn.functional.dropout(value, 0.1, self.training))


FAULTS = (
    fault(ResidualDropoutMissing, "resid_dropout", case="train"),
    fault(PatternDropoutMissing, "attn_dropout", case="train"),
    fault(DropoutBeforeSoftmax, "attn_dropout", case="train"),
    fault(DropoutScaleMissing, "attn_dropout", case="train"),
    fault(DropoutInEvalMode, "softmax", "attn_dropout"),
    fault(mlp_dropout_missing, "resid_dropout", kinds=("mlp", "block"), case="train"),
    fault(PatternDetached, "gradient", case="backward"),
    fault(KeysDetached, "gradient", case="backward"),
    fault(OneHeadDetached, "gradient", case="backward"),
    fault(ValueGradientScaled, "gradient", "gradient_scale", case="backward"),
    fault(OutputGradientReversed, "gradient", case="backward"),
    fault(ProjectionWeightsDetached, "gradient", "forward", case="backward"),
    fault(mlp_gradient_missing, "gradient", kinds=("mlp", "block"), case="backward"),
    fault(ScaledByOneAndP, "attn_dropout", case="train"),
    fault(DrawsOnceMore, "attn_dropout", case="train"),
    fault(DropsFromValuesToo, "mix", case="train"),
)
