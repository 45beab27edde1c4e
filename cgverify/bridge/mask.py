"""Convert the attention masks that a bridge accepts to the one form that is added to the scores.

| mask | meaning |
|---|---|
| None | causal |
| `[batch, keys]` | 1 or True for a token, 0 or False for padding; also causal |
| `[batch or 1, heads or 1, queries, keys]`, boolean | True where a query may attend; not made causal |
| `[batch or 1, heads or 1, queries, keys]`, floating point | added to the scores unchanged, as in Hugging Face |
"""

from __future__ import annotations

import torch


def additive_mask(
    mask: torch.Tensor | None,
    *,
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    cached: int,
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """Return the mask to add to the scores, broadcastable to `[batch, heads, queries, keys]`.

    Hidden positions get `dtype`'s lowest finite value, as in transformers' eager masks.

    Args:
        mask: one of the forms above.
        queries: the number of queries. The first query is at the key with index `cached`.
        keys: the number of keys. In a cache of fixed size, some of them are still hidden from every query.
        dtype: the dtype of the hidden states.

    Raises:
        ValueError: the mask has another rank or shape. Nothing was computed.
    """
    if mask is None:
        return _lowest_where_hidden(_causal(queries, keys, cached, device), dtype)
    if mask.ndim == 2:
        if mask.shape != (batch, keys):
            raise ValueError(
                f"a 2D attention_mask must be [batch, keys] = [{batch}, {keys}], cached keys included, "
                f"not {list(mask.shape)}."
            )
        return _lowest_where_hidden(_causal(queries, keys, cached, device) & mask.bool()[:, None, None, :], dtype)
    shape = mask.shape
    if len(shape) != 4 or shape[0] not in (1, batch) or shape[1] not in (1, heads) or shape[2:] != (queries, keys):
        raise ValueError(
            f"attention_mask must be [batch, keys] or [batch or 1, heads or 1, queries, keys] with batch {batch}, "
            f"heads {heads}, queries {queries} and keys {keys}, not {list(shape)}."
        )
    return _lowest_where_hidden(mask, dtype) if mask.dtype == torch.bool else mask


def _causal(queries: int, keys: int, cached: int, device: torch.device) -> torch.Tensor:
    """Return True where a query may attend to a key, `[1, 1, queries, keys]`."""
    return torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device).tril(cached)


def _lowest_where_hidden(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    additive = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return additive.masked_fill(~visible, torch.finfo(dtype).min)
