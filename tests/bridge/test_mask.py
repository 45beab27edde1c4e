"""The forms of an attention mask."""

from __future__ import annotations

import pytest
import torch

from cgverify.bridge.mask import additive_mask

HERE = {"hidden_states": torch.zeros(2, 3, 8), "heads": 4, "keys": 5, "cached": 2}
LOWEST = torch.finfo(torch.float32).min
CAUSAL = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()


def visible(mask: torch.Tensor) -> torch.Tensor:
    assert set(mask.unique().tolist()) <= {0.0, LOWEST}
    return mask == 0


def test_no_mask_is_causal_after_the_cached_keys() -> None:
    assert torch.equal(visible(additive_mask(None, **HERE))[0, 0], CAUSAL)


@pytest.mark.parametrize("heads", [1, 4])
def test_floating_4d_mask_is_added_unchanged(heads: int) -> None:
    soft = torch.randn(2, heads, 3, 5)
    assert additive_mask(soft, **HERE) is soft


@pytest.mark.parametrize("shape", [(2, 4), (1, 5), (2, 3, 5), (2, 1, 5, 5), (2, 1, 3, 4), (3, 1, 3, 5), (2, 3, 3, 5)])
def test_mask_of_the_wrong_shape_raises(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="attention_mask must be"):
        additive_mask(torch.zeros(shape), **HERE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_mask_of_one_token_leaves_scores_in_autocast(dtype: torch.dtype) -> None:
    hidden = torch.zeros(1, 1, 8, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert additive_mask(None, hidden, heads=2, keys=3, cached=2).dtype == torch.bfloat16
    assert additive_mask(None, hidden, heads=2, keys=3, cached=2).dtype == torch.float32
