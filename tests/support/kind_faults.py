"""Seeded faults of size, state, data and coverage, each of which one new case alone can show."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cgverify.selftest.candidates import Implementation
from cgverify.selftest.seeded.seeding import attention, changed


def _last_block_unscaled(_: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    result = scores(query, key, mask)
    whole = result.shape[-2] // 128 * 128
    return torch.cat((result[..., :whole, :], result[..., whole:, :] * 1.01), -2) if whole else result


def _remembered(bridge: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    """Add the mask of the last forward if this one is in the same memory, whose content may be another."""
    kept = bridge.__dict__.get("_kept")
    if kept is None or kept[0].data_ptr() != mask.data_ptr() or kept[0].shape != mask.shape:
        kept = bridge.__dict__["_kept"] = (mask, mask.clone())
    return scores(query, key, kept[1])


def _clamped(_: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    result = scores(query, key, mask)
    return result.clamp(min=torch.finfo(result.dtype).min, max=1000.0)


def _numbers(_: Any, forward: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    return forward(hidden_states.masked_fill(hidden_states.isnan(), 0.0), *args, **kwargs)


def _one_swallowed(bridge: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return forward(*args, **kwargs)
    except Exception:
        for module in bridge.modules():
            if hasattr(module, "fwd_hooks"):
                module.remove_hooks("fwd", including_permanent=True)
        return forward(*args, **kwargs)


def _rows(path: str, row: int) -> Implementation:
    def change(bridge: Any) -> None:
        with torch.no_grad():
            bridge.get_submodule(path).original_component.weight[row].mul_(1.001)

    return changed(change)


def _square(_: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    """Transpose keys that are as many as a head has dimensions."""
    return scores(query, key.mT if key.shape[2] == key.shape[3] else key, mask)


last_block_unscaled = attention(_scores=_last_block_unscaled)
square_keys_transposed = attention(_scores=_square)
mask_in_same_memory_remembered = attention(_scores=_remembered)
hook_error_swallowed = attention(forward=_one_swallowed)
scores_clamped = attention(_scores=_clamped)
nan_made_zero = attention(forward=_numbers)
embedding_row_137 = _rows("embed", 137)
unembedding_row_201 = _rows("unembed", 201)

FAULTS = {
    "shapes": {"last_block_unscaled": "attn", "square_keys_transposed": "attn"},
    "state": {"mask_in_same_memory_remembered": "attn", "hook_error_swallowed": "attn"},
    "data": {"scores_clamped": "attn", "nan_made_zero": "attn"},
    "weights": {"embedding_row_137": "embed", "unembedding_row_201": "unembed"},
}
"""By case: the faults that it shows, each with the kind of component to verify."""
