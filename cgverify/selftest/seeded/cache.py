"""What goes wrong only with a key-value cache, and so only in `decode`."""

from __future__ import annotations

from typing import Any

import torch

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.selftest.entry import fault

Pair = tuple[torch.Tensor, torch.Tensor]


class CachedKeysUnrotated(CodeGenAttentionBridge):
    """Keys go into the cache as they were before the rotation."""

    def _rotate(
        self, query: torch.Tensor, key: torch.Tensor, position_ids: torch.Tensor, position_embeddings: Any = None
    ) -> Pair:
        self._unrotated = key.transpose(1, 2)
        return super()._rotate(query, key, position_ids, position_embeddings)

    def _extend_cache(self, cache: Any, key: torch.Tensor, value: torch.Tensor) -> Pair:
        return super()._extend_cache(cache, self._unrotated.to(key.dtype), value)


class CacheNotCast(CodeGenAttentionBridge):
    """Rotated keys are cached in float32, whatever the model's dtype."""

    def _rotate(
        self, query: torch.Tensor, key: torch.Tensor, position_ids: torch.Tensor, position_embeddings: Any = None
    ) -> Pair:
        query, key = super()._rotate(query, key, position_ids, position_embeddings)
        self._wide = key.transpose(1, 2)
        return query, key

    def _extend_cache(self, cache: Any, key: torch.Tensor, value: torch.Tensor) -> Pair:
        keys, values = super()._extend_cache(cache, self._wide, value)
        return keys, values.to(key.dtype)


class CacheKeysAndValuesSwapped(CodeGenAttentionBridge):
    """Values are kept as keys and keys as values, and read back likewise."""

    def _extend_cache(self, cache: Any, key: torch.Tensor, value: torch.Tensor) -> Pair:
        values, keys = super()._extend_cache(cache, value, key)
        return keys, values


class CacheOfAnotherLayer(CodeGenAttentionBridge):
    """The cache is addressed one layer too high."""

    def _extend_cache(self, cache: Any, key: torch.Tensor, value: torch.Tensor) -> Pair:
        extended: Pair = cache.update(key, value, self._layer_idx + 1)
        return extended


class CacheNotExtended(CodeGenAttentionBridge):
    """Keys are attended to and not kept."""

    def _extend_cache(self, cache: Any, key: torch.Tensor, value: torch.Tensor) -> Pair:
        layers = cache.layers
        if len(layers) > self._layer_idx and layers[self._layer_idx].is_initialized:
            held = layers[self._layer_idx]
            return torch.cat((held.keys, key), -2), torch.cat((held.values, value), -2)
        return super()._extend_cache(cache, key, value)


class OldKeysForgotten(CodeGenAttentionBridge):
    """What was cached before counts as zeros in the scores."""

    def _extend_cache(self, cache: Any, key: torch.Tensor, value: torch.Tensor) -> Pair:
        keys, values = super()._extend_cache(cache, key, value)
        keys = keys.clone()
        keys[..., : -key.shape[-2], :] = 0
        return keys, values


class NewestKeyStale(CodeGenAttentionBridge):
    """The newest key in the cache is the one before it."""

    def _extend_cache(self, cache: Any, key: torch.Tensor, value: torch.Tensor) -> Pair:
        keys, values = super()._extend_cache(cache, key, value)
        if keys.shape[-2] > key.shape[-2]:
            keys[..., -1, :] = keys[..., -2, :].clone()
        return keys, values


class OldKeysRotatedAgain(CodeGenAttentionBridge):
    """Keys that were cached before change with each step."""

    def _extend_cache(self, cache: Any, key: torch.Tensor, value: torch.Tensor) -> Pair:
        keys, values = super()._extend_cache(cache, key, value)
        keys[..., : -key.shape[-2], :2] = keys[..., : -key.shape[-2], :2].flip(-1)
        return keys, values


class OneHeadsCacheStale(CodeGenAttentionBridge):
    """Head 5 keeps new values of zero."""

    def _extend_cache(self, cache: Any, key: torch.Tensor, value: torch.Tensor) -> Pair:
        value = value.clone()
        value[:, 5] = 0
        return super()._extend_cache(cache, key, value)


class CacheInBfloat16(CodeGenAttentionBridge):
    """What is kept has been through bfloat16."""

    def _extend_cache(self, cache: Any, key: torch.Tensor, value: torch.Tensor) -> Pair:
        half = torch.bfloat16
        return super()._extend_cache(cache, key.to(half).to(key.dtype), value.to(half).to(value.dtype))


class CacheRowsExchanged(CodeGenAttentionBridge):
    """Rows of the batch change places in the cache, as after a careless beam search."""

    def _extend_cache(self, cache: Any, key: torch.Tensor, value: torch.Tensor) -> Pair:
        return super()._extend_cache(cache, key.flip(0), value.flip(0))


class CachedPositionsIgnored(CodeGenAttentionBridge):
    """With a cache, positions are counted instead of read: wrong for left-padded generation."""

    def forward(self, hidden_states: torch.Tensor, layer_past: Any = None, *args: Any, **kwargs: Any) -> Any:
        if layer_past is not None:
            start = layer_past.get_seq_length(self._layer_idx)
            end = start + hidden_states.shape[1]
            kwargs["position_ids"] = torch.arange(start, end, device=hidden_states.device)[None]
        return super().forward(hidden_states, layer_past, *args, **kwargs)


class CachedPositionsRestart(CodeGenAttentionBridge):
    """After the prefill, positions count from the step's own first."""

    def forward(self, hidden_states: torch.Tensor, layer_past: Any = None, *args: Any, **kwargs: Any) -> Any:
        if layer_past is not None and layer_past.get_seq_length(self._layer_idx):
            kwargs["position_ids"] = torch.arange(hidden_states.shape[1], device=hidden_states.device)[None]
        return super().forward(hidden_states, layer_past, *args, **kwargs)


class CachedMaskIgnored(CodeGenAttentionBridge):
    """With a cache, the mask is causal whatever was given."""

    def forward(self, hidden_states: torch.Tensor, layer_past: Any = None, *args: Any, **kwargs: Any) -> Any:
        if layer_past is not None:
            kwargs["attention_mask"] = None
        return super().forward(hidden_states, layer_past, *args, **kwargs)


class ChunkSeesItself(CodeGenAttentionBridge):
    """With a cache, the tokens of a chunk see each other's future."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        queries, keys = mask.shape[-2:]
        if 1 < queries < keys:
            mask = mask.clone()
            mask[..., keys - queries :] = 0
        return super()._scores(query, key, mask)


FAULTS = (
    *(
        fault(candidate, "cache", case="decode")
        for candidate in (
            *(CachedKeysUnrotated, CacheNotCast, CacheKeysAndValuesSwapped, CacheOfAnotherLayer, CacheNotExtended),
            *(NewestKeyStale, OldKeysRotatedAgain, OneHeadsCacheStale, CacheInBfloat16, CacheRowsExchanged),
        )
    ),
    fault(OldKeysForgotten, "scores", case="decode"),
    fault(CachedPositionsIgnored, "rope", case="decode"),
    fault(CachedPositionsRestart, "rope", case="decode"),
    fault(CachedMaskIgnored, "scores", case="decode"),
    fault(ChunkSeesItself, "scores", case="decode"),
)
