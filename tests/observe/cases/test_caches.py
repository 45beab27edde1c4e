"""The case `caches`: our bridge holds with every kind of cache, and faults that need one are seen in no other case."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hugging_face import TABLE_PER_MODEL
from torch import Tensor
from transformers import DynamicCache, StaticCache
from verifying import ALL_DTYPES, failed, findings, of, verify

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.common.records import CellResult, Verdict


@pytest.fixture(scope="module")
def ours() -> list[CellResult]:
    return verify(cases=["caches"], dtypes=ALL_DTYPES, layers=[1])


def test_bridge_passes_with_every_kind_of_cache(ours: list[CellResult]) -> None:
    assert failed(ours) == []
    for result in of(ours, kind="attn"):
        different = {f.tap for f in result.findings if f.verdict is not Verdict.BITWISE}
        assert different <= {"hook_rot_k"} or result.cell.dtype == "float64"  # unseen in a cache of fixed size


def test_fixed_size_cache_is_judged_with_its_unused_keys(ours: list[CellResult]) -> None:
    caches = {f.step: f.shape[2] for f in findings(of(ours, kind="attn", dtype="float32")) if f.tap == "cache_keys"}
    assert caches == dict.fromkeys(("fixed prefill", "fixed token", "fixed chunk"), 16) | {
        "prefill": 8,
        "other prefill": 8,
        "reordered token": 9,
        "cropped chunk": 12,
    }


def test_short_sequences_and_single_rows_hold() -> None:
    for shape in ({"batch_size": 1, "seq_len": 1}, {"batch_size": 3, "seq_len": 17}):
        assert failed(verify(cases=["caches"], dtypes=["float32"], **shape)) == []


class FixedRolled(CodeGenAttentionBridge):
    """Reads the keys of a cache of fixed size from the wrong place."""

    def _extend_cache(self, cache: Any, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        key, value = super()._extend_cache(cache, key, value)
        return (key.roll(1, -2), value) if isinstance(cache, StaticCache) else (key, value)


class KeepsItsOwnKeys(CodeGenAttentionBridge):
    """Keeps keys and values on the cache, next to those that the cache reorders and crops."""

    def _extend_cache(self, cache: Any, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        from_cache = super()._extend_cache(cache, key, value)
        if not isinstance(cache, DynamicCache):
            return from_cache
        before = getattr(cache, "kept", {}).get(self._layer_idx)
        if before is not None:
            key, value = (torch.cat(pair, -2) for pair in zip(before, (key, value), strict=True))
        cache.kept = {**getattr(cache, "kept", {}), self._layer_idx: (key, value)}
        return key[..., -from_cache[0].shape[-2] :, :], value[..., -from_cache[1].shape[-2] :, :]


class CachesIfTold(CodeGenAttentionBridge):
    """Ignores a cache unless `use_cache` is given with it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("use_cache"):
            kwargs |= dict.fromkeys({"layer_past", "cache"} & kwargs.keys())
        return super().forward(*args, **kwargs)


class CachesByKeyword(CodeGenAttentionBridge):
    """Ignores a cache that is given by position."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        cached = [isinstance(each, DynamicCache | StaticCache) for each in args]
        return super().forward(*(None if one else each for one, each in zip(cached, args, strict=True)), **kwargs)


class IgnoresPositions(CodeGenAttentionBridge):
    """Ignores arguments that are given by position."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args[:1], **kwargs)


FAULTS: dict[type, tuple[str, ...]] = {
    FixedRolled: ("fixed prefill", "fixed token", "fixed chunk"),
    KeepsItsOwnKeys: ("reordered token", "cropped chunk"),
    CachesIfTold: ("prefill", "reordered token", "cropped chunk"),
    CachesByKeyword: ("reordered token", "cropped chunk"),
    IgnoresPositions: ("reordered token",),
}
"""The steps in which each may fail. It must fail in the first of them."""


if TABLE_PER_MODEL:  # attention has its cache by keyword there
    del FAULTS[CachesByKeyword]


@pytest.fixture(scope="module")
def seeded() -> list[CellResult]:
    names = [f"{__name__}:{fault.__name__}" for fault in FAULTS]
    return verify(cases=["decode", "caches"], candidates=names, components=["attn"], dtypes=["float32"])


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_of_a_cache_is_seen_in_this_case_alone(seeded: list[CellResult], fault: type) -> None:
    own = of(seeded, candidate=f"{__name__}:{fault.__name__}")
    found = failed(own)
    assert failed(of(own, case="decode")) == []
    assert {finding.step for finding in found} <= set(FAULTS[fault])
    assert found[0].step == FAULTS[fault][0]
