"""Hooks that show another tensor or never fire, and wrong values that a forward returns."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.selftest.candidates import Implementation, Rows, by_name, fault, named_faults
from cgverify.selftest.seeded.seeding import attention, is_hidden, keep, returning


class ShowsHiddenScores(CodeGenAttentionBridge):
    """`hook_attn_scores` shows scores of later keys; the mask is added after the hook."""

    def _scores(self, query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        self._hidden = is_hidden(mask)
        return super()._scores(query, key, mask.masked_fill(self._hidden, 0))

    def _pattern_of(self, scores: Tensor, dtype: torch.dtype) -> Tensor:
        return super()._pattern_of(scores.masked_fill(self._hidden, torch.finfo(scores.dtype).min), dtype)


class ShowsUnscaledScores(CodeGenAttentionBridge):
    """`hook_attn_scores` shows the scores before the division."""

    def _scores(self, query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        unscaled = super()._scores(query, key, mask.masked_fill(is_hidden(mask), 0)) * self._scale()
        return unscaled.masked_fill(is_hidden(mask), torch.finfo(unscaled.dtype).min)

    def _pattern_of(self, scores: Tensor, dtype: torch.dtype) -> Tensor:
        return super()._pattern_of(scores / self._scale(), dtype)

    def _scale(self) -> float:
        return math.sqrt(self.original_component.head_dim)


class AliasesSwapped(CodeGenAttentionBridge):
    """`hook_q` is an alias of the values' hook, and `hook_v` of the queries' hook."""

    hook_aliases: ClassVar[dict[str, str]] = {
        **CodeGenAttentionBridge.hook_aliases,
        "hook_q": "v.hook_out",
        "hook_v": "q.hook_out",
    }


def _showing_queries(shown: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Implementation:
    """Show a function of the queries, the rotated queries and the rotated keys, and use the rotated queries."""

    def rotate(bridge: Any, rotate: Any, query: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        return shown(query, *keep(bridge, rotate, query, *others))

    return attention(
        _rotate=rotate,
        _scores=lambda bridge, scores, _, key, mask: scores(bridge.kept[0].transpose(1, 2), key, mask),
    )


def _uniform(bridge: Any, pattern_of: Any, scores: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.full_like(keep(bridge, pattern_of, scores, dtype), 1 / scores.shape[-1])


def _plain_order(bridge: Any, _: Any, fused: Any, hidden_states: Tensor) -> tuple[Tensor, ...]:
    hidden_states = fused.hook_in(hidden_states)
    projections = (bridge.q, bridge.k, bridge.v)
    separate = [projection.original_component(projection.hook_in(hidden_states)) for projection in projections]
    parts = fused.hook_out(torch.cat(separate, -1)).chunk(3, -1)
    return tuple(projection.hook_out(part) for projection, part in zip(projections, parts, strict=True))


def _dead(*hooks: str) -> Implementation:
    def init(bridge: Any, inherited: Any, *args: Any, **kwargs: Any) -> None:
        inherited(*args, **kwargs)
        for hook in hooks:
            setattr(bridge, hook, nn.Identity())

    return attention(__init__=init)


def _scaled_scores_in_place(_: Any, pattern_of: Any, scores: Tensor, dtype: torch.dtype) -> Any:
    pattern = pattern_of(scores, dtype)
    scores.mul_(2)
    return pattern


def _zeroed_by_data(_: Any, output: Any, z: Tensor) -> Any:
    projected = output(z)
    z.data.zero_()
    return projected


_SHOWN_QUERIES: Rows = {
    "ShowsRotatedKeysAsQueries": ("`hook_rot_q` shows the keys.", lambda _, __, key: (key, key)),
    "ShowsUnrotatedQueries": (
        "`hook_rot_q` shows the queries before the rotation.",
        lambda query, _, key: (query.to(key.dtype), key),
    ),
}
_SHOWN_PATTERNS: Rows = {
    "ShowsPatternUncast": (
        "`hook_pattern` shows the pattern in float32; the cast follows.",
        attention(
            _pattern_of=lambda _, pattern_of, scores, __: pattern_of(scores, scores.dtype),
            _mix=lambda _, mix, pattern, value: mix(pattern.to(value.dtype), value),
        ),
    ),
    "ShowsAnotherPattern": (
        "`hook_pattern` shows a uniform pattern; the correct one is used.",
        attention(_pattern_of=_uniform, _mix=lambda bridge, mix, _, value: mix(bridge.kept, value)),
    ),
    "ShowsHeadsInAnotherOrder": (
        "`hook_pattern` shows the heads in reverse order.",
        attention(
            _pattern_of=lambda _, pattern_of, scores, dtype: pattern_of(scores, dtype).flip(1),
            _mix=lambda _, mix, pattern, value: mix(pattern.flip(1), value),
        ),
    ),
}
_FUSED: Rows = {
    "ShowsFusedInPlainOrder": (
        "`qkv.hook_out` shows q, k and v one after another, not in the order of the fused weight.",
        attention(_project_fused=_plain_order),
    ),
}
_DEAD_ROTATION: Rows = {
    "RotationHooksDead": (
        "`hook_rot_q` and `hook_rot_k` never fire, as in TransformerLens.",
        _dead("hook_rot_q", "hook_rot_k"),
    ),
}
_DEAD_PATTERN: Rows = {"PatternHookDead": ("`hook_pattern` never fires.", _dead("hook_pattern"))}
_DEAD_OUTPUT: Rows = {"OutputHookDead": ("`hook_out` never fires.", _dead("hook_out"))}
_CONDUCT: Rows = {
    "FiresTwice": (
        "`hook_pattern` fires twice in one forward.",
        attention(_mix=lambda bridge, mix, pattern, value: mix(bridge.hook_pattern(pattern), value)),
    ),
    "ChangesWhatAHookSaw": (
        "Scores are scaled in place after their hook, which may have kept the tensor.",
        attention(_pattern_of=_scaled_scores_in_place),
    ),
    "ChangesItByData": (
        "z is set to 0 through `.data` after its hook, which the version counter does not show.",
        attention(_output=_zeroed_by_data),
    ),
    "OtherWithoutHooks": (
        "The path without hooks is wrong.",
        attention(_output=lambda bridge, output, z: output(z) * (1 if bridge.hook_pattern.fwd_hooks else 2)),
    ),
}
_RETURNED_PATTERNS: Rows = {
    "ReturnedWeightsZeroed": (
        "The returned pattern is 0.",
        lambda output, pattern: (output, torch.zeros_like(pattern)),
    ),
    "ReturnsAverageWeights": (
        "The returned pattern is the average of the heads.",
        lambda output, pattern: (output, pattern.mean(1, keepdim=True).expand_as(pattern)),
    ),
    "WrongShape": ("The returned pattern has one head.", lambda output, pattern: (output, pattern[:, :1])),
}
_RETURNED_OUTPUTS: Rows = {
    "ReturnsOtherOutput": (
        "The returned output is not the one that `hook_out` showed.",
        lambda output, pattern: (output + output.abs().max(), pattern),
    ),
}
_FORMS: Rows = {"ReturnsMore": ("The forward returns a tuple of three.", lambda *returned: (*returned, None))}

FAULTS = (
    fault(ShowsHiddenScores, "scores"),
    fault(ShowsUnscaledScores, "scores"),
    fault(AliasesSwapped, "conduct"),
    *named_faults(__name__, _SHOWN_QUERIES, "rope", seed=_showing_queries),
    *named_faults(__name__, _SHOWN_PATTERNS, "softmax"),
    *named_faults(__name__, _FUSED, "qkv_layout", "project_q", "project_k", "project_v"),
    *named_faults(__name__, _DEAD_ROTATION, "rope", "patched"),
    *named_faults(__name__, _DEAD_PATTERN, "softmax", "patched"),
    *named_faults(__name__, _DEAD_OUTPUT, "output", "patched"),
    *named_faults(__name__, _CONDUCT, "conduct"),
    *named_faults(__name__, _RETURNED_PATTERNS, "returned", seed=returning),
    *named_faults(__name__, _RETURNED_OUTPUTS, "returned", "block_sum", seed=returning),
    *named_faults(__name__, _FORMS, "form", "forward", seed=returning),
)
__getattr__ = by_name(FAULTS)
