"""The attention masks that a bridge accepts, brought to the one form that it adds to the scores.

| given | meaning |
|---|---|
| None | causal |
| `[batch, keys]` | 1 or True for a token, 0 or False for padding; causal as well |
| `[batch or 1, heads or 1, queries, keys]`, boolean | True where a query may attend; nothing is added to it |
| the same, floating point | added to the scores as it is, as in Hugging Face |
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
    """The mask that is added to the scores, broadcastable to `[batch, heads, queries, keys]`.

    Hidden positions get `dtype`'s lowest finite value, as in transformers' eager masks.

    Args:
        mask: one of the forms above.
        queries: how many positions ask; the first of them is the key number `cached`.
        keys: how many positions there are to attend to; a cache of fixed size has some that nobody may see yet.
        dtype: of the hidden states.

    Raises:
        ValueError: a mask of another rank or shape, before any arithmetic.
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
    """True where a query may see a key, `[1, 1, queries, keys]`."""
    return torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device).tril(cached)


def _lowest_where_hidden(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    additive = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return additive.masked_fill(~visible, torch.finfo(dtype).min)
