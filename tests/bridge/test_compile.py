"""torch.compile of the attention without hooks."""

from __future__ import annotations

import pytest
import torch
from sides import of_shape
from torch._dynamo.utils import counters


@pytest.mark.slow
@torch.no_grad()
def test_compiled_attention_agrees_with_the_plain_one() -> None:
    _, ours = of_shape(4, 16, 8, torch.float32)
    given = ours.get_random_inputs(2, 12)
    expected = ours(**given)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(ours)
    found = compiled(**given)
    assert counters["stats"]["calls_captured"] > 10  # the compiled code ran
    for ours_now, before in zip(found, expected, strict=True):
        torch.testing.assert_close(ours_now, before)
