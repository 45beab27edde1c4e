"""Wrong scores: scale, mask, precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cgverify.selftest.candidates import Implementation, Rows, by_name, named_faults
from cgverify.selftest.seeded.seeding import attention, edited, is_hidden, replacing, scales_before_mask


def _scaled(factor: Callable[[Any], float]) -> Implementation:
    """Multiply the scores, before the mask is added or after it as the scale is, by a function of the bridge."""

    def scaled(bridge: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
        if not scales_before_mask(bridge):
            return scores(query, key, mask) * factor(bridge)
        wide = torch.promote_types(query.dtype, torch.float32)
        return scores(query.to(wide) * factor(bridge), key, mask)

    return attention(_scores=scaled)


def _masked(change: Callable[[Tensor], Tensor]) -> Implementation:
    """Add a function of the mask, `[batch, 1, queries, keys]`."""
    return attention(_scores=lambda _, scores, q, k, mask: scores(q, k, change(mask)))


def _head_dim(bridge: Any) -> int:
    return int(bridge.original_component.head_dim)


def _unscaled(bridge: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    hidden = is_hidden(mask)
    finite: Tensor = scores(query, key, mask.masked_fill(hidden, 0)) * _head_dim(bridge) ** 0.5
    return finite.masked_fill(hidden, torch.finfo(finite.dtype).min)


def _diagonal(mask: Tensor, offset: int = 0) -> Tensor:
    """Return where a query meets its own key, or a key that is `offset` positions later."""
    queries, keys = mask.shape[-2:]
    everywhere = torch.ones(queries, keys, dtype=torch.bool, device=mask.device)
    return everywhere.triu(keys - queries + offset).tril(keys - queries + offset)


def _without_padding(mask: Tensor) -> Tensor:
    queries, keys = mask.shape[-2:]
    visible = torch.ones(queries, keys, dtype=torch.bool, device=mask.device).tril(keys - queries)
    return torch.where(visible & is_hidden(mask), 0, mask)


def _without_own_key(mask: Tensor) -> Tensor:
    own = edited(lambda own: own[:, 0].fill_(False))(_diagonal(mask))
    return mask.masked_fill(own, torch.finfo(mask.dtype).min)


def _transposed(mask: Tensor) -> Tensor:
    if mask.shape[-1] != mask.shape[-2]:
        return mask
    return torch.where(is_hidden(mask), mask, mask.mT.masked_fill(is_hidden(mask.mT), 0))


def _product_transposed(_: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    return scores(key, query, mask) if query.shape == key.shape else scores(query, key, mask)


def _last_key_shared(_: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    return scores(query, edited(lambda key: key[:, 1:, -1].copy_(key[:, :1, -1]))(key), mask)


def _mask_on_other_side(bridge: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    if scales_before_mask(bridge):
        wide = torch.promote_types(mask.dtype, torch.float32)
        return scores(query, key, mask.to(wide) * _head_dim(bridge) ** -0.5)
    return scores(query, key, torch.zeros_like(mask)) + mask


def _operands(dtype: torch.dtype) -> Callable[..., Any]:
    return lambda _, scores, q, k, mask: scores(q.to(dtype), k.to(dtype), mask)


_SCALES: Rows = {
    "ScaleSlightlyOff": ("Scores are multiplied by 1 + 10⁻⁴.", lambda _: 1 + 1e-4),
    "ScaleOffByAThousandth": ("Scores are multiplied by 1.001.", lambda _: 1.001),
    "ScaleOffByOnePercent": ("Scores are multiplied by 0.99.", lambda _: 0.99),
    "ScaledByHeads": (
        "Scores are divided by √heads instead of √head_dim.",
        lambda bridge: (_head_dim(bridge) / bridge.config.n_heads) ** 0.5,
    ),
    "ScaledByModelWidth": ("Scores are divided by √d_model.", lambda bridge: bridge.config.n_heads**-0.5),
    "ScaledByHeadDim": ("Scores are divided by head_dim, not by its root.", lambda bridge: _head_dim(bridge) ** -0.5),
    "ScaledByRotaryDim": (
        "Scores are divided by √rotary_dim.",
        lambda bridge: (_head_dim(bridge) / bridge._table().shape[-1]) ** 0.5,
    ),
}
_MASKS: Rows = {
    "MaskIgnored": ("Every query sees every key.", torch.zeros_like),
    "CausalOneAhead": ("A query sees the next key too.", lambda mask: mask.masked_fill(_diagonal(mask, 1), 0)),
    "CausalOneBehind": ("A query does not see its own key, except the first.", _without_own_key),
    "MaskTooWeak": (
        "Hidden keys get −10⁴, not the lowest value.",
        lambda mask: mask.masked_fill(is_hidden(mask), -1e4),
    ),
}
_SCORES: Rows = {
    "Unscaled": ("Scores are not divided at all.", _unscaled),
    "QueryKeyProductTransposed": ("k·qᵀ is computed if it has the shape of q·kᵀ.", _product_transposed),
    "ScoresOfOneHeadShared": ("In the last position, all heads have the key of head 0.", _last_key_shared),
    "ScoresInBfloat16": ("The operands of the product are bfloat16.", _operands(torch.bfloat16)),
    "ScoresInModelDtype": (
        "The product is computed in the dtype of the values, without a cast to float32.",
        lambda _, scores, q, k, mask: scores(q.to(mask.dtype), k.to(mask.dtype), mask),
    ),
    "ScoresInFloat16Operands": ("The operands of the product are float16.", _operands(torch.float16)),
    "OneDimensionDropped": (
        "The product leaves out the last dimension of a head.",
        lambda _, scores, q, k, mask: scores(q[..., :-1], k[..., :-1], mask),
    ),
    "TinyBiasAdded": (
        "10⁻⁴ is added to the scores of the first key.",
        lambda _, scores, q, k, mask: edited(lambda s: s[..., 0].add_(1e-4))(scores(q, k, mask)),
    ),
}
_MASKS_UNDER_STRESS: Rows = {
    "PaddingIgnored": ("The mask is causal, whatever padding it hides.", _without_padding),
    "SoftMaskHalved": (
        "Finite values of the mask are halved.",
        lambda mask: torch.where(is_hidden(mask), mask, mask / 2),
    ),
    "MaskMadeBoolean": ("Finite values of the mask are ignored.", lambda mask: torch.where(is_hidden(mask), mask, 0)),
    "MaskOfFirstRow": ("Every row of a batch has the mask of the first.", lambda mask: mask[:1]),
    "MaskTransposed": ("Finite values of a square mask are transposed.", _transposed),
    "MaskAppliedWhereNegative": (
        "Any negative value of the mask hides a key.",
        lambda mask: mask.masked_fill(mask < 0, torch.finfo(mask.dtype).min),
    ),
}
_SCORES_UNDER_STRESS: Rows = {
    "MaskOnOtherSideOfScale": (
        "The mask is added after scaling where Hugging Face adds it before, or before where it adds it after.",
        _mask_on_other_side,
    ),
    "MaskAddedTwice": (
        "Finite values of the mask are added a second time, after scaling.",
        lambda _, scores, q, k, mask: scores(q, k, mask) + mask.masked_fill(is_hidden(mask), 0),
    ),
    "ScoresClipped": ("Scores above 4 become 4.", lambda _, scores, q, k, mask: scores(q, k, mask).clamp(max=4.0)),
}

FAULTS = (
    *named_faults(__name__, _SCALES, "scores", seed=_scaled),
    *named_faults(__name__, _MASKS, "scores", seed=_masked),
    *named_faults(__name__, _SCORES, "scores", seed=replacing("_scores")),
    *named_faults(__name__, _MASKS_UNDER_STRESS, "scores", seed=_masked, case="stress"),
    *named_faults(__name__, _SCORES_UNDER_STRESS, "scores", seed=replacing("_scores"), case="stress"),
)
__getattr__ = by_name(FAULTS)
