"""Memory that is free is given back."""

from __future__ import annotations

import sys

import psutil
import pytest
import torch

from cgverify.checkpoint.heap import give_back_freed


@pytest.mark.skipif(sys.platform != "linux", reason="malloc_trim is glibc's")
def test_what_lies_free_below_something_that_is_held_is_given_back() -> None:
    process = psutil.Process()
    pieces = [torch.ones(2000) for _ in range(20_000)]  # 160 MB in pieces that are no mappings of their own
    held = pieces[-1]
    pieces.clear()
    before = process.memory_info().rss
    give_back_freed()
    assert before - process.memory_info().rss > 100_000_000
    assert held.sum() == 2000
