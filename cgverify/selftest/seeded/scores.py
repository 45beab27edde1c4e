"""Wrong scores: scale, mask, precision."""

from __future__ import annotations

import torch

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.selftest.entry import fault


def _hidden(mask: torch.Tensor) -> torch.Tensor:
    return mask <= torch.finfo(mask.dtype).min


class Scale(CodeGenAttentionBridge):
    """Scores are too large by a factor."""

    def factor(self) -> float:
        raise NotImplementedError

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super()._scores(query, key, mask) * self.factor()

    def _head_dim(self) -> int:
        return int(self.original_component.head_dim)


class ScaleSlightlyOff(Scale):
    """1 + 10⁻⁴."""

    def factor(self) -> float:
        return 1 + 1e-4


class ScaleOffByAThousandth(Scale):
    """1.001."""

    def factor(self) -> float:
        return 1.001


class ScaleOffByOnePercent(Scale):
    """0.99."""

    def factor(self) -> float:
        return 0.99


class ScaledByHeads(Scale):
    """Divided by √heads instead of √head_dim."""

    def factor(self) -> float:
        return float((self._head_dim() / self.config.n_heads) ** 0.5)


class ScaledByModelWidth(Scale):
    """Divided by √d_model."""

    def factor(self) -> float:
        return float(self.config.n_heads**-0.5)


class ScaledByHeadDim(Scale):
    """Divided by head_dim, without its root."""

    def factor(self) -> float:
        return float(self._head_dim() ** -0.5)


class ScaledByRotaryDim(Scale):
    """Divided by √rotary_dim."""

    def factor(self) -> float:
        return float((self._head_dim() / self._table().shape[-1]) ** 0.5)


class Unscaled(Scale):
    """Not divided at all."""

    def factor(self) -> float:
        return float(self._head_dim() ** 0.5)

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        finite = super()._scores(query, key, mask.masked_fill(_hidden(mask), 0))
        return finite.masked_fill(_hidden(mask), torch.finfo(finite.dtype).min)


class MaskAfterScaling(CodeGenAttentionBridge):
    """Scaled first, then masked: a soft mask counts √head_dim times as much."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super()._scores(query, key, torch.zeros_like(mask)) + mask


class Mask(CodeGenAttentionBridge):
    """A bridge that adds `masked` of the mask."""

    def masked(self, mask: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super()._scores(query, key, self.masked(mask))


class MaskIgnored(Mask):
    """Every query sees every key."""

    def masked(self, mask: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(mask)


class PaddingIgnored(Mask):
    """Causal whatever the mask says."""

    def masked(self, mask: torch.Tensor) -> torch.Tensor:
        queries, keys = mask.shape[-2:]
        visible = torch.ones(queries, keys, dtype=torch.bool, device=mask.device).tril(keys - queries)
        return torch.where(visible & _hidden(mask), 0, mask)


class CausalOneAhead(Mask):
    """A query sees one key of its future."""

    def masked(self, mask: torch.Tensor) -> torch.Tensor:
        queries, keys = mask.shape[-2:]
        ahead = torch.ones(queries, keys, dtype=torch.bool, device=mask.device)
        return mask.masked_fill(ahead.triu(keys - queries + 1).tril(keys - queries + 1), 0)


class CausalOneBehind(Mask):
    """A query does not see its own key, but for the first."""

    def masked(self, mask: torch.Tensor) -> torch.Tensor:
        queries, keys = mask.shape[-2:]
        own = torch.ones(queries, keys, dtype=torch.bool, device=mask.device)
        own = own.triu(keys - queries).tril(keys - queries)
        own[:, 0] = False
        return mask.masked_fill(own, torch.finfo(mask.dtype).min)


class MaskAddedTwice(CodeGenAttentionBridge):
    """Added before and after scaling."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super()._scores(query, key, mask) + mask.masked_fill(_hidden(mask), 0)


class SoftMaskHalved(Mask):
    """What a mask says softly counts half."""

    def masked(self, mask: torch.Tensor) -> torch.Tensor:
        return torch.where(_hidden(mask), mask, mask / 2)


class MaskMadeBoolean(Mask):
    """Finite values of a mask are taken as 0."""

    def masked(self, mask: torch.Tensor) -> torch.Tensor:
        return torch.where(_hidden(mask), mask, 0)


class MaskOfFirstRow(Mask):
    """Every row of a batch has the mask of the first."""

    def masked(self, mask: torch.Tensor) -> torch.Tensor:
        return mask[:1]


class MaskTransposed(Mask):
    """Queries and keys of the soft mask change places, where it is square."""

    def masked(self, mask: torch.Tensor) -> torch.Tensor:
        if mask.shape[-1] != mask.shape[-2]:
            return mask
        return torch.where(_hidden(mask), mask, mask.mT.masked_fill(_hidden(mask.mT), 0))


class MaskTooWeak(Mask):
    """What is hidden gets −10⁴, not the lowest finite value."""

    def masked(self, mask: torch.Tensor) -> torch.Tensor:
        return mask.masked_fill(_hidden(mask), -1e4)


class MaskAppliedWhereNegative(Mask):
    """Any negative value of a mask hides."""

    def masked(self, mask: torch.Tensor) -> torch.Tensor:
        return mask.masked_fill(mask < 0, torch.finfo(mask.dtype).min)


class QueryKeyProductTransposed(CodeGenAttentionBridge):
    """k·qᵀ, where that has the same shape."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if query.shape == key.shape:
            query, key = key, query
        return super()._scores(query, key, mask)


class ScoresOfOneHeadShared(CodeGenAttentionBridge):
    """All heads have the keys of head 0 in the last position."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        key = key.clone()
        key[:, :, -1] = key[:, :1, -1]
        return super()._scores(query, key, mask)


class ScoresClipped(CodeGenAttentionBridge):
    """No visible score exceeds 4."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super()._scores(query, key, mask).clamp(max=4.0)


class ScoresInBfloat16(CodeGenAttentionBridge):
    """The product's operands are bfloat16."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super()._scores(query.to(torch.bfloat16), key.to(torch.bfloat16), mask)


class ScoresInModelDtype(CodeGenAttentionBridge):
    """The product is taken in the values' dtype, as without Hugging Face's cast to float32."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super()._scores(query.to(mask.dtype), key.to(mask.dtype), mask)


class ScoresInFloat16Operands(CodeGenAttentionBridge):
    """The product's operands are float16."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super()._scores(query.to(torch.float16), key.to(torch.float16), mask)


class OneDimensionDropped(CodeGenAttentionBridge):
    """The last dimension of a head is left out of the product."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super()._scores(query[..., :-1], key[..., :-1], mask)


class TinyBiasAdded(CodeGenAttentionBridge):
    """10⁻⁴ is added to the first key's scores."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = super()._scores(query, key, mask)
        scores[..., 0] += 1e-4
        return scores


FAULTS = (
    *(
        fault(candidate, "scores")
        for candidate in (
            *(ScaleSlightlyOff, ScaleOffByAThousandth, ScaleOffByOnePercent, ScaledByHeads, ScaledByModelWidth),
            *(ScaledByHeadDim, ScaledByRotaryDim, Unscaled, MaskIgnored, CausalOneAhead, CausalOneBehind),
            *(MaskTooWeak, QueryKeyProductTransposed, ScoresOfOneHeadShared, ScoresInBfloat16, ScoresInModelDtype),
            *(ScoresInFloat16Operands, OneDimensionDropped, TinyBiasAdded),
        )
    ),
    *(
        fault(candidate, "scores", case="stress")
        for candidate in (
            *(MaskAfterScaling, PaddingIgnored, MaskAddedTwice, SoftMaskHalved, MaskMadeBoolean, MaskOfFirstRow),
            *(MaskTransposed, MaskAppliedWhereNegative, ScoresClipped),
        )
    ),
)
