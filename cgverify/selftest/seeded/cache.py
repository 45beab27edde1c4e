"""Faults that only a key-value cache shows, and so only `decode`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cgverify.selftest.candidates import Implementation, Rows, by_name, named_faults
from cgverify.selftest.seeded.seeding import attention, edited, keep, replacing, through_bfloat16

TwoTensors = tuple[Tensor, Tensor]


def _unrotated(bridge: Any, rotate: Any, query: Tensor, key: Tensor, *where: Any) -> Any:
    bridge.__dict__["kept"] = key.transpose(1, 2)
    return rotate(query, key, *where)


def _uncast(bridge: Any, extend: Any, cache: Any, key: Tensor, value: Tensor) -> TwoTensors:
    keys, values = extend(cache, bridge.kept[1].transpose(1, 2), value)
    return keys, values.to(key.dtype)


def _not_extended(bridge: Any, extend: Any, cache: Any, key: Tensor, value: Tensor) -> Any:
    layers = cache.layers
    if len(layers) > bridge._layer_idx and layers[bridge._layer_idx].is_initialized:
        old = layers[bridge._layer_idx]
        return torch.cat((old.keys, key), -2), torch.cat((old.values, value), -2)
    return extend(cache, key, value)


def _forgotten(_: Any, extend: Any, cache: Any, key: Tensor, value: Tensor) -> TwoTensors:
    keys, values = extend(cache, key, value)
    return edited(lambda keys: keys[..., : -key.shape[-2], :].zero_())(keys), values


def _newest_stale(_: Any, extend: Any, cache: Any, key: Tensor, value: Tensor) -> TwoTensors:
    keys, values = extend(cache, key, value)
    if keys.shape[-2] > key.shape[-2]:
        keys[..., -1, :] = keys[..., -2, :].clone()
    return keys, values


def _rotated_again(_: Any, extend: Any, cache: Any, key: Tensor, value: Tensor) -> TwoTensors:
    keys, values = extend(cache, key, value)
    old = keys[..., : -key.shape[-2], :2]
    old.copy_(old.flip(-1))
    return keys, values


def _with_cache(change: Callable[[int, Tensor], dict[str, Any]]) -> Implementation:
    """Change the keywords of a forward that has a cache.

    The function takes the number of cached positions and the hidden states.
    """

    def replacement(bridge: Any, forward: Any, hidden_states: Tensor, layer_past: Any = None, **kwargs: Any) -> Any:
        cache = kwargs.pop("cache", layer_past)
        if cache is not None:
            kwargs |= change(cache.get_seq_length(bridge._layer_idx), hidden_states)
        return forward(hidden_states, cache, **kwargs)

    return attention(forward=replacement)


def _counted(start: int, hidden_states: Tensor) -> dict[str, Any]:
    positions = torch.arange(start, start + hidden_states.shape[1], device=hidden_states.device)[None]
    return {"position_ids": positions, "position_embeddings": None}


def _chunk_sees_itself(_: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    queries, keys = mask.shape[-2:]
    seen = edited(lambda mask: mask[..., keys - queries :].zero_())(mask) if 1 < queries < keys else mask
    return scores(query, key, seen)


_CACHES: Rows = {
    "CacheKeysAndValuesSwapped": (
        "Keys are cached as values and values as keys, and read back as they were cached.",
        lambda _, extend, cache, key, value: extend(cache, value, key)[::-1],
    ),
    "CacheOfAnotherLayer": (
        "The cache of the next layer is used.",
        lambda bridge, _, cache, key, value: cache.update(key, value, bridge._layer_idx + 1),
    ),
    "CacheNotExtended": ("New keys are attended to and not cached.", _not_extended),
    "NewestKeyStale": ("The newest key in the cache is the one before it.", _newest_stale),
    "OldKeysRotatedAgain": ("Keys that are in the cache change with each step.", _rotated_again),
    "OneHeadsCacheStale": (
        "New values of head 5 are cached as 0.",
        lambda _, extend, cache, key, value: extend(cache, key, edited(lambda v: v[:, 5].zero_())(value)),
    ),
    "CacheInBfloat16": (
        "Keys and values are rounded to bfloat16 before they are cached.",
        lambda _, extend, cache, key, value: extend(cache, through_bfloat16(key), through_bfloat16(value)),
    ),
    "CacheRowsExchanged": (
        "Rows of the batch are exchanged in the cache, as after a wrong beam search.",
        lambda _, extend, cache, key, value: extend(cache, key.flip(0), value.flip(0)),
    ),
}
_CACHED_KEYS: Rows = {
    "CachedKeysUnrotated": (
        "Keys are cached as they were before the rotation.",
        attention(
            _rotate=_unrotated,
            _extend_cache=lambda bridge, extend, cache, key, value: extend(cache, bridge.kept.to(key.dtype), value),
        ),
    ),
    "CacheNotCast": (
        "Rotated keys are cached in float32, whatever the dtype of the model.",
        attention(_rotate=keep, _extend_cache=_uncast),
    ),
}
_OLD_KEYS: Rows = {"OldKeysForgotten": ("Keys that were cached before count as 0 in the scores.", _forgotten)}
_POSITIONS: Rows = {
    "CachedPositionsIgnored": (
        "With a cache, positions are counted from the number of cached ones: wrong with left padding.",
        _counted,
    ),
    "CachedPositionsRestart": (
        "After the prefill, positions are counted from 0.",
        lambda start, x: _counted(0, x) if start else {},
    ),
}
_MASK: Rows = {
    "CachedMaskIgnored": (
        "With a cache, the mask is causal, whatever mask was given.",
        lambda *_: {"attention_mask": None},
    )
}
_CHUNK: Rows = {"ChunkSeesItself": ("With a cache, the tokens of a chunk see later ones.", _chunk_sees_itself)}

FAULTS = (
    *named_faults(__name__, _CACHED_KEYS, "cache", case="decode"),
    *named_faults(__name__, _CACHES, "cache", seed=replacing("_extend_cache"), case="decode"),
    *named_faults(__name__, _OLD_KEYS, "scores", seed=replacing("_extend_cache"), case="decode"),
    *named_faults(__name__, _POSITIONS, "rope", seed=_with_cache, case="decode"),
    *named_faults(__name__, _MASK, "scores", seed=_with_cache, case="decode"),
    *named_faults(__name__, _CHUNK, "scores", seed=replacing("_scores"), case="decode"),
)
__getattr__ = by_name(FAULTS)
