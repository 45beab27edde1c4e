"""Where in a tensor something is, in words."""

from __future__ import annotations

import pytest
import torch

from cgverify.observe.stages import HEADS, PATTERN, RESIDUAL
from cgverify.verification.diagnosis.extent import extent


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (..., ""),
        ((slice(None), slice(1, None), 3), "head 3 from position 1 on"),
        ((slice(None), slice(1, None)), "all heads, all but the first position"),
        ((slice(None), slice(None), slice(6, None)), "all heads of the last partition"),
        ((slice(None), slice(None), slice(2, 6)), "all heads of partitions 1 and 2"),
        ((1,), "all heads, batch 1 only"),
        ((slice(None), 2, 1, slice(0, 3)), "head 1, position 2, dimensions 0 to 2"),
        ((slice(None), slice(0, 4), [0, 5]), "heads 0 and 5 before position 4"),
        ((slice(None), slice(None), [0, 2, 3, 4, 5, 6, 7]), "all heads but 1"),
        ((slice(None), [0, 2, 5, 7]), "all heads, 4 of 8 positions"),
    ],
)
def test_extent_names_heads_positions_and_rows(place: object, words: str) -> None:
    broken = torch.zeros(2, 8, 8, 4, dtype=torch.bool)
    broken[place] = True
    assert extent(broken, HEADS) == words


def test_extent_of_a_pattern_names_keys() -> None:
    broken = torch.zeros(2, 4, 8, 8, dtype=torch.bool)
    broken[..., :4] = True
    assert extent(broken, PATTERN) == "all heads, keys before position 4"


def test_extent_of_scattered_elements_is_a_share() -> None:
    broken = torch.zeros(1, 5, 10, dtype=torch.bool)
    broken[0, 1::2, ::2] = broken[0, 2::2, 1::2] = True
    assert extent(broken, RESIDUAL) == "50% of the elements of all but the first position"


def test_extent_of_nothing_or_another_shape_is_empty() -> None:
    assert extent(torch.zeros(2, 8, 8, 4, dtype=torch.bool), HEADS) == ""
    assert extent(torch.ones(2, 8, dtype=torch.bool), HEADS) == ""
