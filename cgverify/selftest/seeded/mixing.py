"""Wrong softmax, pattern, z and output."""

from __future__ import annotations

from typing import Any

import torch

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.selftest.entry import fault


class Softmax(CodeGenAttentionBridge):
    """A bridge whose pattern is changed on the way in or out."""

    def changed_scores(self, scores: torch.Tensor) -> torch.Tensor:
        return scores

    def changed_pattern(self, pattern: torch.Tensor) -> torch.Tensor:
        return pattern

    def _pattern_of(self, scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self.changed_pattern(super()._pattern_of(self.changed_scores(scores), dtype))


class SoftmaxOverQueries(CodeGenAttentionBridge):
    """Each key's column sums to 1."""

    def _pattern_of(self, scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return scores.softmax(-2).to(dtype)


class SoftmaxOverHeads(CodeGenAttentionBridge):
    """The heads' patterns sum to 1."""

    def _pattern_of(self, scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return scores.softmax(1).to(dtype)


class SoftmaxInBfloat16(CodeGenAttentionBridge):
    """Scores are rounded to bfloat16 first."""

    def _pattern_of(self, scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return super()._pattern_of(scores.to(torch.bfloat16), torch.bfloat16).to(dtype)


class SoftmaxInFloat16(CodeGenAttentionBridge):
    """Scores are rounded to float16 first."""

    def _pattern_of(self, scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return super()._pattern_of(scores.to(torch.float16), torch.float16).to(dtype)


class TemperatureOffByAThousandth(Softmax):
    """Softmax at temperature 1.001."""

    def changed_scores(self, scores: torch.Tensor) -> torch.Tensor:
        return scores / 1.001


class TemperatureOfTwo(Softmax):
    """Softmax at temperature 2."""

    def changed_scores(self, scores: torch.Tensor) -> torch.Tensor:
        return scores / 2


class DenominatorOneTooLarge(CodeGenAttentionBridge):
    """Softmax with a silent key whose score is 0."""

    def _pattern_of(self, scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        silent = torch.zeros_like(scores[..., :1])
        return torch.cat((scores, silent), -1).softmax(-1)[..., :-1].to(dtype)


class PatternDroppedForOneHead(Softmax):
    """Head 3 attends to nothing."""

    def changed_pattern(self, pattern: torch.Tensor) -> torch.Tensor:
        pattern[:, 3] = 0
        return pattern


class PatternScaled(Softmax):
    """Rows sum to 1.001."""

    def changed_pattern(self, pattern: torch.Tensor) -> torch.Tensor:
        return pattern * 1.001


class SmallWeightsDropped(Softmax):
    """A weight under 10⁻³ counts as 0."""

    def changed_pattern(self, pattern: torch.Tensor) -> torch.Tensor:
        return pattern.masked_fill(pattern < 1e-3, 0)


class FirstKeyDropped(Softmax):
    """The first key gets no weight where there are others."""

    def changed_pattern(self, pattern: torch.Tensor) -> torch.Tensor:
        pattern[..., 1:, 0] = 0
        return pattern


class PatternInBfloat16(Softmax):
    """The pattern has been through bfloat16."""

    def changed_pattern(self, pattern: torch.Tensor) -> torch.Tensor:
        return pattern.to(torch.bfloat16).to(pattern.dtype)


class LastRowOfPatternStale(Softmax):
    """The last query has the pattern of the first row in the batch."""

    def changed_pattern(self, pattern: torch.Tensor) -> torch.Tensor:
        pattern[:, :, -1] = pattern[:1, :, -1].clone()
        return pattern


class Mixing(CodeGenAttentionBridge):
    """A bridge whose values or z are changed."""

    def changed_values(self, value: torch.Tensor) -> torch.Tensor:
        """`[batch, heads, keys, head_dim]`."""
        return value

    def changed_z(self, z: torch.Tensor) -> torch.Tensor:
        """`[batch, seq, heads, head_dim]`."""
        return z

    def _mix(self, pattern: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        z = super()._mix(pattern, self.changed_values(value)).unflatten(-1, (value.shape[1], -1))
        return self.changed_z(z).flatten(-2)


class ValuesOfAnotherHead(Mixing):
    """Head 2 mixes the values of head 3."""

    def changed_values(self, value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        value[:, 2] = value[:, 3]
        return value


class ValuesShifted(Mixing):
    """A key's weight goes to the value of the key before it."""

    def changed_values(self, value: torch.Tensor) -> torch.Tensor:
        return value.roll(1, -2)


class ValuesInBfloat16(Mixing):
    """Values have been through bfloat16."""

    def changed_values(self, value: torch.Tensor) -> torch.Tensor:
        return value.to(torch.bfloat16).to(value.dtype)


class HeadsSwapped(Mixing):
    """Heads 0 and 1 change places in z."""

    def changed_z(self, z: torch.Tensor) -> torch.Tensor:
        return z[:, :, [1, 0, *range(2, z.shape[2])]]


class HeadsMergedTransposed(Mixing):
    """z is merged as `[head_dim, heads]`."""

    def changed_z(self, z: torch.Tensor) -> torch.Tensor:
        return z.mT.reshape(z.shape)


class OneElementChanged(Mixing):
    """One element of z is a tenth too far from 0."""

    def changed_z(self, z: torch.Tensor) -> torch.Tensor:
        z[0, 0, 0, 3] += z[0, 0, 0, 3].abs() * 0.1
        return z


class LastPositionStale(Mixing):
    """The last position repeats the z of the one before it."""

    def changed_z(self, z: torch.Tensor) -> torch.Tensor:
        z[:, -1] = z[:, -2] if z.shape[1] > 1 else z[:, -1]
        return z


class LastRowStale(Mixing):
    """The last row of the batch repeats the z of the first."""

    def changed_z(self, z: torch.Tensor) -> torch.Tensor:
        z[-1] = z[0]
        return z


class NotANumber(Mixing):
    """One element of z is NaN."""

    def changed_z(self, z: torch.Tensor) -> torch.Tensor:
        z[0, 0, 0, 0] = torch.nan
        return z


class Infinite(Mixing):
    """One element of z is infinite."""

    def changed_z(self, z: torch.Tensor) -> torch.Tensor:
        z[-1, -1, -1, -1] = torch.inf
        return z


class OutputScaled(CodeGenAttentionBridge):
    """The output is 1.001 times too large."""

    def _output(self, z: torch.Tensor) -> torch.Tensor:
        return super()._output(z) * 1.001


class OutputOfOneHeadLost(CodeGenAttentionBridge):
    """What head 0 would add to the output is left out; `hook_z` does not show it."""

    def _output(self, z: torch.Tensor) -> torch.Tensor:
        lost = z.clone()
        lost[..., z.shape[-1] // self.config.n_heads :] = 0
        of_others: torch.Tensor = self.o.original_component(lost)
        return super()._output(z) - of_others


class ResidualAddedInside(CodeGenAttentionBridge):
    """Attention adds its input, which is the block's to do."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        output, pattern = super().forward(hidden_states, *args, **kwargs)
        return output + hidden_states, pattern


FAULTS = (
    *(
        fault(candidate, "softmax")
        for candidate in (
            *(SoftmaxOverQueries, SoftmaxOverHeads, SoftmaxInBfloat16, SoftmaxInFloat16, TemperatureOffByAThousandth),
            *(TemperatureOfTwo, DenominatorOneTooLarge, PatternDroppedForOneHead, PatternScaled, FirstKeyDropped),
            *(PatternInBfloat16, LastRowOfPatternStale),
        )
    ),
    fault(SmallWeightsDropped, "softmax", case="stress"),
    *(
        fault(candidate, "mix")
        for candidate in (
            *(ValuesOfAnotherHead, ValuesShifted, ValuesInBfloat16, HeadsSwapped, HeadsMergedTransposed),
            *(OneElementChanged, LastPositionStale, LastRowStale, NotANumber, Infinite),
        )
    ),
    fault(OutputScaled, "output"),
    fault(OutputOfOneHeadLost, "output"),
    fault(ResidualAddedInside, "returned", "block_sum"),
)
