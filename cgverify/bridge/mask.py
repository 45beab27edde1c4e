"""Convert the attention masks that a bridge accepts to the one form that is added to the scores.

| mask | meaning |
|---|---|
| None | causal |
| `[batch, keys]` | 1 or True for a token, 0 or False for padding; also causal |
| `[batch or 1, heads or 1, queries, keys]`, boolean | True where a query may attend; not made causal |
| `[batch or 1, heads or 1, queries, keys]`, floating point | added to the scores unchanged, as in Hugging Face |
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cgverify.bridge.fast_path import is_traced


def key_counts(cache: Any, layer: int, tokens: int) -> tuple[int, int]:
    """Return the number of cached tokens, and the number of keys of a mask for the tokens that follow them.

    Args:
        cache: a `transformers` cache or None. One of fixed size has more keys than tokens.
    """
    if cache is None:
        return 0, tokens
    keys, _ = cache.get_mask_sizes(tokens, layer)
    return int(cache.get_seq_length(layer)), keys


def additive_mask(mask: Tensor | None, hidden_states: Tensor, *, heads: int, keys: int, cached: int = 0) -> Tensor:
    """Return the mask to add to the scores, broadcastable to `[batch, heads, queries, keys]`.

    Hidden positions get the lowest finite value of the hidden states' dtype, as in transformers' eager masks.

    Args:
        mask: one of the forms above.
        hidden_states: `[batch, queries, d_model]`.
        keys: the number of keys. In a cache of fixed size, some of them are still hidden from every query.
        cached: the index of the first query's own key.

    Raises:
        ValueError: the mask has another rank or shape. Nothing was computed.
    """
    batch, queries = hidden_states.shape[:2]
    if mask is None and not is_traced() and queries == 1 and keys == cached + 1:
        # Nothing is hidden, and a wider dtype would widen the scores: Hugging Face's are float32, or autocast's.
        device, dtype = hidden_states.device, hidden_states.dtype
        narrow = torch.float32 if dtype == torch.float64 else dtype
        if torch.is_autocast_enabled(device.type):
            narrow = torch.get_autocast_dtype(device.type)
        return torch.zeros(1, 1, 1, keys, dtype=narrow, device=device)
    if mask is None or mask.ndim == 2:
        visible = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=hidden_states.device).tril(cached)
        if mask is None:
            return _lowest_where_hidden(visible, hidden_states)
        if not is_traced() and mask.shape != (batch, keys):
            raise ValueError(
                f"a 2D attention_mask must be [batch, keys] = [{batch}, {keys}], cached keys included, "
                f"not {list(mask.shape)}."
            )
        return _lowest_where_hidden(visible & mask.bool()[:, None, None, :], hidden_states)
    shape = mask.shape
    fits = is_traced() or (shape[0] in (1, batch) and shape[1] in (1, heads) and shape[2:] == (queries, keys))
    if len(shape) != 4 or not fits:
        raise ValueError(
            f"attention_mask must be [batch, keys] or [batch or 1, heads or 1, queries, keys] with batch {batch}, "
            f"heads {heads}, queries {queries} and keys {keys}, not {list(shape)}."
        )
    return _lowest_where_hidden(mask, hidden_states) if mask.dtype == torch.bool else mask


def _lowest_where_hidden(visible: Tensor, like: Tensor) -> Tensor:
    additive = torch.zeros(visible.shape, dtype=like.dtype, device=like.device)
    return additive.masked_fill(~visible, torch.finfo(like.dtype).min)
