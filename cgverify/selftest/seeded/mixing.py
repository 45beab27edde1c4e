"""Wrong softmax, pattern, z and output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cgverify.selftest.candidates import Implementation, Rows, by_name, named_faults
from cgverify.selftest.seeded.seeding import attention, edited, replacing, through_bfloat16


def _from_scores(change: Callable[[Tensor], Tensor]) -> Implementation:
    """Compute the pattern of changed scores, `[batch, heads, queries, keys]`."""
    return attention(_pattern_of=lambda _, pattern_of, scores, dtype: pattern_of(change(scores), dtype))


def _patterned(change: Callable[[Tensor], Tensor]) -> Implementation:
    """Change the pattern, `[batch, heads, queries, keys]`."""
    return attention(_pattern_of=lambda _, pattern_of, scores, dtype: change(pattern_of(scores, dtype)))


def _mixed(change: Callable[[Tensor], Tensor]) -> Implementation:
    """Mix changed values, `[batch, heads, keys, head_dim]`."""
    return attention(_mix=lambda _, mix, pattern, value: mix(pattern, change(value)))


def _z(change: Callable[[Tensor], Tensor]) -> Implementation:
    """Change z, `[batch, seq, heads, head_dim]`."""
    return attention(
        _mix=lambda bridge, mix, pattern, value: change(
            mix(pattern, value).unflatten(-1, (bridge.config.n_heads, -1))
        ).flatten(-2)
    )


def _lower(dtype: torch.dtype) -> Callable[..., Any]:
    return lambda _, pattern_of, scores, wanted: pattern_of(
        scores.to(dtype).clamp(min=torch.finfo(dtype).min), dtype
    ).to(wanted)


def _with_a_silent_key(_bridge: Any, _pattern_of: Any, scores: Tensor, dtype: torch.dtype) -> Tensor:
    silent = torch.zeros_like(scores[..., :1])
    return torch.cat((scores, silent), -1).softmax(-1)[..., :-1].to(dtype)


def _last_position_stale(z: Tensor) -> Tensor:
    return edited(lambda z: z[:, -1].copy_(z[:, -2]))(z) if z.shape[1] > 1 else z


def _one_head_lost(bridge: Any, output: Any, z: Tensor) -> Any:
    of_others = edited(lambda z: z[..., z.shape[-1] // bridge.config.n_heads :].zero_())(z)
    return output(z) - bridge.o.original_component(of_others)


def _residual_inside(_: Any, forward: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    output, pattern = forward(hidden_states, *args, **kwargs)
    return output + hidden_states, pattern


_SOFTMAXES: Rows = {
    "SoftmaxOverQueries": (
        "The column of each key sums to 1.",
        lambda _, __, scores, dtype: scores.softmax(-2).to(dtype),
    ),
    "SoftmaxOverHeads": (
        "The patterns of the heads sum to 1.",
        lambda _, __, scores, dtype: scores.softmax(1).to(dtype),
    ),
    "SoftmaxInBfloat16": ("Scores are rounded to bfloat16 first; hidden ones stay finite.", _lower(torch.bfloat16)),
    "SoftmaxInFloat16": ("Scores are rounded to float16 first; hidden ones stay finite.", _lower(torch.float16)),
    "DenominatorOneTooLarge": (
        "The softmax has one more key, whose score is 0 and whose value is 0.",
        _with_a_silent_key,
    ),
}
_TEMPERATURES: Rows = {
    "TemperatureOffByAThousandth": ("The softmax has a temperature of 1.001.", lambda scores: scores / 1.001),
    "TemperatureOfTwo": ("The softmax has a temperature of 2.", lambda scores: scores / 2),
}
_PATTERNS: Rows = {
    "PatternDroppedForOneHead": ("The pattern of head 3 is 0.", edited(lambda pattern: pattern[:, 3].zero_())),
    "PatternScaled": ("Rows of the pattern sum to 1.001.", lambda pattern: pattern * 1.001),
    "FirstKeyDropped": (
        "The first key gets no weight if a query sees others.",
        edited(lambda pattern: pattern[..., 1:, 0].zero_()),
    ),
    "PatternInBfloat16": ("The pattern is rounded to bfloat16.", through_bfloat16),
    "LastRowOfPatternStale": (
        "In every row of the batch, the last query has the pattern of the first row.",
        edited(lambda pattern: pattern[1:, :, -1].copy_(pattern[:1, :, -1])),
    ),
}
_PATTERNS_UNDER_STRESS: Rows = {
    "SmallWeightsDropped": ("Weights under 10⁻³ become 0.", lambda pattern: pattern.masked_fill(pattern < 1e-3, 0)),
}
_VALUES: Rows = {
    "ValuesOfAnotherHead": ("Head 2 mixes the values of head 3.", edited(lambda value: value[:, 2].copy_(value[:, 3]))),
    "ValuesShifted": ("The weight of a key is given to the value before its own.", lambda value: value.roll(1, -2)),
    "ValuesInBfloat16": ("Values are rounded to bfloat16.", through_bfloat16),
}
_RESULTS: Rows = {
    "HeadsSwapped": ("Heads 0 and 1 of z are exchanged.", lambda z: z[:, :, [1, 0, *range(2, z.shape[2])]]),
    "HeadsMergedTransposed": ("z is merged as `[head_dim, heads]`.", lambda z: z.mT.reshape(z.shape)),
    "OneElementChanged": (
        "One element of z is too far from 0 by a tenth.",
        edited(lambda z: z[0, 0, 0, 3].add_(z[0, 0, 0, 3].abs() * 0.1)),
    ),
    "LastPositionStale": ("The last position has the z of the position before it.", _last_position_stale),
    "LastRowStale": ("The last row of the batch has the z of the first.", edited(lambda z: z[-1].copy_(z[0]))),
    "NotANumber": ("One element of z is NaN.", edited(lambda z: z[0, 0, 0, 0].fill_(torch.nan))),
    "Infinite": ("One element of z is infinite.", edited(lambda z: z[-1, -1, -1, -1].fill_(torch.inf))),
}
_OUTPUTS: Rows = {
    "OutputScaled": ("The output is multiplied by 1.001.", lambda _, output, z: output(z) * 1.001),
    "OutputOfOneHeadLost": ("The output lacks head 0, which `hook_z` shows.", _one_head_lost),
}
_FORWARDS: Rows = {"ResidualAddedInside": ("Attention adds its input, which the block adds too.", _residual_inside)}

FAULTS = (
    *named_faults(__name__, _SOFTMAXES, "softmax", seed=replacing("_pattern_of")),
    *named_faults(__name__, _TEMPERATURES, "softmax", seed=_from_scores),
    *named_faults(__name__, _PATTERNS, "softmax", seed=_patterned),
    *named_faults(__name__, _PATTERNS_UNDER_STRESS, "softmax", seed=_patterned, case="stress"),
    *named_faults(__name__, _VALUES, "mix", seed=_mixed),
    *named_faults(__name__, _RESULTS, "mix", seed=_z),
    *named_faults(__name__, _OUTPUTS, "output", seed=replacing("_output")),
    *named_faults(__name__, _FORWARDS, "returned", "block_sum", seed=replacing("forward")),
)
__getattr__ = by_name(FAULTS)
