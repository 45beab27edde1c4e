"""Faults that only other caches show, or other uses of one: fixed size, reordered, several, given in other ways."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from cgverify.selftest.candidates import Hidden, by_name, hidden_faults
from cgverify.selftest.seeded import demonstrations as user
from cgverify.selftest.seeded.seeding import attention

TwoTensors = tuple[Tensor, Tensor]


def _length(bridge: Any, cache: Any) -> int:
    return int(cache.get_seq_length(bridge._layer_idx))


def _note_used(bridge: Any, extend: Any, cache: Any, key: Tensor, value: Tensor) -> Any:
    bridge.__dict__["_used"] = _length(bridge, cache) + key.shape[2]
    return extend(cache, key, value)


def _empty_slots_shown(bridge: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    used = bridge.__dict__.pop("_used", key.shape[2])
    if used < key.shape[2]:
        mask = mask.clone()
        mask[..., used:] = 0
    return scores(query, key, mask)


def _last_slots(bridge: Any, extend: Any, cache: Any, key: Tensor, value: Tensor) -> TwoTensors:
    """Read the new keys where a cache that grows has them: at the end."""
    used, new = _length(bridge, cache), key.shape[2]
    keys, values = extend(cache, key, value)
    if keys.shape[2] > used + new and new == 1:
        keys = torch.cat((keys[:, :, :used], torch.zeros_like(key), keys[:, :, used + 1 :]), 2)
    return keys, values


def _own_copy(by_cache: bool) -> Any:
    """Return the keys and values that this attention has cached itself, while their number is that of the cache's."""

    def extend_cache(bridge: Any, extend: Any, cache: Any, key: Tensor, value: Tensor) -> TwoTensors:
        own = bridge.__dict__.setdefault("_own", {})
        name, before = id(cache) if by_cache else "last", _length(bridge, cache)
        extended: TwoTensors = extend(cache, key, value)
        kept = own.get(name)
        if kept is not None and before and kept[0].shape[:3] == (*key.shape[:2], before):
            extended = torch.cat((kept[0], key), 2), torch.cat((kept[1], value), 2)
        own[name] = tuple(each.detach() for each in extended)
        return extended

    return extend_cache


def _only_if_used(_: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
    if kwargs.get("use_cache") is False:
        kwargs = {name: value for name, value in kwargs.items() if not hasattr(value, "get_seq_length")}
    return forward(*args, **kwargs)


def _without_positional(_: Any, forward: Any, hidden_states: Tensor, *_args: Any, **kwargs: Any) -> Any:
    return forward(hidden_states, **kwargs)


def _cache_of(kwargs: dict[str, Any]) -> Any:
    return next((value for value in kwargs.values() if hasattr(value, "get_seq_length")), None)


def _own_causal_mask(length: Any) -> Any:
    """Make the missing mask of a forward with a cache, by a function that counts what is cached."""

    def attend(bridge: Any, inherited: Any, hidden_states: Tensor, **given: Any) -> Any:
        cache = _cache_of(given)
        if cache is not None and given.get("attention_mask") is None:
            new = hidden_states.shape[1]
            keys = _length(bridge, cache) + new
            visible = torch.ones(1, 1, new, keys, dtype=torch.bool).tril(length(bridge, cache))
            given["attention_mask"] = visible.to(hidden_states.device)
        return inherited(hidden_states, **given)

    return attention(_attend=attend)


def _beams_share(_: Any, mix: Any, pattern: Tensor, value: Tensor) -> Any:
    if (
        len(value) > 1
        and pattern.shape[2] < value.shape[2]
        and torch.equal(value[:, :, :1], value[:1, :, :1].expand_as(value[:, :, :1]))
    ):
        value = value[:1].expand_as(value)
    return mix(pattern, value)


def _positions_by_cache(bridge: Any, forward: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Count the positions of new tokens from the number of cached keys, whatever positions they are given."""
    cache, positions = _cache_of(kwargs), kwargs.get("position_ids")
    if cache is not None and positions is not None and (past := _length(bridge, cache)):
        counted = torch.arange(past, past + hidden_states.shape[1], device=positions.device).expand_as(positions)
        kwargs = {name: value for name, value in kwargs.items() if name != "position_embeddings"}
        kwargs["position_ids"] = counted
    return forward(hidden_states, *args, **kwargs)


# --- what a user does -------------------------------------------------------------------------------------------------


def _fixed(bridge: Any) -> Any:
    cache, past, returned = StaticCache(bridge.original_model.config, max_cache_len=16), 0, None
    for new in (4, 1, 1):
        given = user.inputs(2, new, past)
        empty = torch.full((2, 1, new, 16 - past - new), torch.finfo(torch.float32).min)
        given["attention_mask"] = torch.cat((given["attention_mask"], empty), -1)
        returned = user.call(bridge, "attn", given, cache)
        past += new
    return returned


def _beams(bridge: Any) -> Any:
    cache = DynamicCache()
    user.call(bridge, "attn", user.inputs(2, 4), cache)
    cache.reorder_cache(torch.tensor([1, 1]))
    return user.call(bridge, "attn", user.inputs(2, 1, 4), cache)


def _two_caches(bridge: Any) -> Any:
    first, second = DynamicCache(), DynamicCache()
    user.call(bridge, "attn", user.inputs(2, 4), first)
    user.call(bridge, "attn", user.inputs(2, 4, seed=1), second)
    return user.call(bridge, "attn", user.inputs(2, 1, 4), first)


def _unused(bridge: Any) -> Any:
    cache = DynamicCache()
    given = user.inputs(2, 4) | {"use_cache": False}
    arguments = {"past_key_values": cache, **given}
    bridge.blocks[0].attn(**arguments)
    return cache.get_seq_length(0)


def _by_place(bridge: Any) -> Any:
    cache, given = DynamicCache(), user.inputs(2, 4)
    bridge.blocks[0].attn(given["hidden_states"], cache, given["attention_mask"], given["position_ids"])
    return cache.get_seq_length(0)


def _without_mask(layer: int) -> user.Demonstration:
    def demonstrate(bridge: Any) -> Any:
        cache, returned = DynamicCache(), None
        for past, new in ((0, 4), (4, 3)):
            for index in range(layer + 1):
                given = user.inputs(2, new, past)
                del given["attention_mask"]
                returned = bridge.blocks[index].attn(past_key_values=cache, **given)
        return returned

    return demonstrate


def _common_start(bridge: Any) -> Any:
    cache, prefix = DynamicCache(), user.inputs(2, 4)
    prefix["hidden_states"][1, 0] = prefix["hidden_states"][0, 0]
    user.call(bridge, "attn", prefix, cache)
    return user.call(bridge, "attn", user.inputs(2, 1, 4), cache)


def _cropped(bridge: Any) -> Any:
    cache = DynamicCache()
    user.call(bridge, "attn", user.inputs(2, 6), cache)
    cache.crop(-2)
    user.call(bridge, "attn", user.inputs(2, 2, 4, seed=5), cache)
    return user.call(bridge, "attn", user.inputs(2, 1, 6), cache)


def _never_shorter(bridge: Any, extend: Any, cache: Any, key: Tensor, value: Tensor) -> TwoTensors:
    """Keep the keys of each position from its first use, as a paged copy that cropping does not reach."""
    own = bridge.__dict__.setdefault("_pages", {})
    before = _length(bridge, cache)
    keys, values = extend(cache, key, value)
    kept = own.get(id(cache)) if before else None
    if kept is not None and kept[0].shape[:2] == keys.shape[:2]:
        size = min(kept[0].shape[2], keys.shape[2])
        keys = torch.cat((kept[0][:, :, :size], keys[:, :, size:]), 2)
        values = torch.cat((kept[1][:, :, :size], values[:, :, size:]), 2)
    own[id(cache)] = keys.detach(), values.detach()
    return keys, values


_ROWS = {
    "EmptySlotsShown": Hidden(
        "The empty slots of a cache of fixed size are seen.",
        attention(_extend_cache=_note_used, _scores=_empty_slots_shown),
        ("scores",),
        _fixed,
    ),
    "NewKeysAtTheEnd": Hidden(
        "In a cache of fixed size, the key of a single token is looked for in the last slot.",
        attention(_extend_cache=_last_slots),
        ("scores", "cache"),
        _fixed,
    ),
    "ReorderedBeamsUnseen": Hidden(
        "Attention keeps its own copy of a cache, which a reordering of beams does not reach.",
        attention(_extend_cache=_own_copy(by_cache=True)),
        ("scores", "cache", "mix"),
        _beams,
    ),
    "CachesConfused": Hidden(
        "Attention keeps its own copy of the last cache, and takes another one of its length for it.",
        attention(_extend_cache=_own_copy(by_cache=False)),
        ("scores", "cache", "mix"),
        _two_caches,
        cases=("state",),
    ),
    "CroppedKeysReturn": Hidden(
        "Keys that were cropped from a cache are used instead of those that replaced them.",
        attention(_extend_cache=_never_shorter),
        ("scores", "cache", "mix"),
        _cropped,
    ),
    "CacheIgnoredUnlessUsed": Hidden(
        "A cache that is given with `use_cache=False` is neither read nor extended.",
        attention(forward=_only_if_used),
        ("cache",),
        _unused,
        kinds=("block", "attn"),
    ),
    "PlaceIgnored": Hidden(
        "Arguments that are given by position are ignored, as in TransformerLens.",
        attention(forward=_without_positional),
        ("cache", "scores", "forward"),
        user.raising(_by_place),
        ("attn",),
    ),
    "ChunkUncausal": Hidden(
        "Without a mask, the tokens of a chunk on a cache see only as many keys as they are.",
        _own_causal_mask(lambda *_: 0),
        ("scores",),
        _without_mask(0),
        ("attn",),
        cases=("data",),
    ),
    "LengthOfFirstLayer": Hidden(
        "Without a mask, the number of cached keys is that of layer 0, which has the new ones already.",
        _own_causal_mask(lambda _, cache: int(cache.get_seq_length())),
        ("scores",),
        _without_mask(1),
        ("attn",),
    ),
    "BeamsShareValues": Hidden(
        "Cached sequences with a common first token share all their values, as if they were beams of one sequence.",
        attention(_mix=_beams_share),
        ("mix",),
        _common_start,
    ),
    "PositionsByCache": Hidden(
        "After a prefix, positions are counted from the number of cached keys.",
        attention(forward=_positions_by_cache),
        ("rope",),
        lambda bridge: _decoded_at(bridge, 2),
        cases=("shapes",),
    ),
}


def _decoded_at(bridge: Any, step: int) -> Any:
    cache = DynamicCache()
    for past, new in ((0, 4), (4, 1)):
        given = user.inputs(2, new, past)
        given["position_ids"] = given["position_ids"] * step
        returned = user.call(bridge, "attn", given, cache)
    return returned


FAULTS = hidden_faults(__name__, _ROWS, "caches")
__getattr__ = by_name(FAULTS)
