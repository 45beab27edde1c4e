"""The case `autocast`: our bridge has Hugging Face's bits in it, and it shows what no other case does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from faults import run_self_test
from hugging_face import TABLE_PER_MODEL
from verifying import ALL_DTYPES, failed, findings, verify

from cgverify.common.records import CellResult, Verdict
from cgverify.observe.cases import CASES
from cgverify.observe.cases.autocast import autocast_dtypes
from cgverify.plan.cases import CASE_KINDS as KINDS
from cgverify.selftest.result import Outcome, SelfTestResult
from cgverify.selftest.seeded import autocast

OF_TRANSFORMER_LENS = ("hook_scale", "hook_normalized")
"""Hooks without a counterpart in Hugging Face."""


UNSEEN = ("RotatedInLowPrecision", "MixOutsideAutocast", "CacheInLowPrecision", "KeysRoundedInCache")
"""Faults that change nothing if rotated q and k have the dtype of v, which is that of autocast."""


@pytest.fixture(scope="module")
def ours() -> list[CellResult]:
    return verify(cases=["autocast"], dtypes=ALL_DTYPES, layers=[1])


def test_our_bridge_has_hugging_faces_bits_in_every_component(ours: list[CellResult]) -> None:
    assert {result.cell.kind for result in ours} == set(KINDS["autocast"])
    assert {f.verdict for f in findings(ours) if not f.tap.endswith(OF_TRANSFORMER_LENS)} == {Verdict.BITWISE}


def test_every_stage_holds_and_products_come_near_their_bound(ours: list[CellResult]) -> None:
    largest: dict[str, float] = {}
    for result in ours:
        for finding in result.findings:
            assert finding.r is not None
            assert finding.r <= 1
            if result.cell.dtype != "float64":
                largest[finding.stage] = max(largest.get(finding.stage, 0.0), finding.r)
    for stage in ("project_q", "project_k", "project_v", "scores", "mix", "output", "mlp_in", "mlp_out", "unembed"):
        assert largest[stage] >= 0.4, stage


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float64", (torch.bfloat16, torch.float16)),
        ("float32", (torch.bfloat16, torch.float16)),
        ("bfloat16", (torch.bfloat16,)),
        ("float16", (torch.float16,)),
    ],
)
def test_each_dtype_is_cast_to_those_that_torch_lets_it(
    ours: list[CellResult], dtype: str, expected: tuple[torch.dtype, ...]
) -> None:
    assert autocast_dtypes(getattr(torch, dtype)) == expected
    pieces = ["prefill", "token 1", "token 2", "chunk"]
    (attention,) = (r for r in ours if (r.cell.dtype, r.cell.kind) == (dtype, "attn"))
    names = [str(low).removeprefix("torch.") for low in expected]
    assert list(dict.fromkeys(f.step for f in attention.findings)) == [
        f"{n} {piece}" for n in names for piece in pieces
    ]


def test_odd_shapes_and_other_seeds_hold() -> None:
    results = verify(
        cases=["autocast"], dtypes=["float32", "float16"], components=["block"], seeds=[1], batch_size=3, seq_len=17
    )
    assert failed(results + verify(cases=["autocast"], dtypes=["bfloat16"], batch_size=1, seq_len=1)) == []


@pytest.fixture(scope="module")
def results() -> dict[str, SelfTestResult]:
    """Return the self-test's results of the case's own faults, by name, in float32."""
    return {result.known.name: result for result in run_self_test(*autocast.FAULTS, quick=True)}


@pytest.mark.parametrize("fault", autocast.FAULTS, ids=lambda fault: fault.name)
def test_autocast_fault_is_caught_and_rightly_blamed(results: dict[str, SelfTestResult], fault: Any) -> None:
    if TABLE_PER_MODEL and fault.name in UNSEEN:
        assert results[fault.name].outcome is Outcome.NO_BIT
    else:
        assert results[fault.name].outcome is Outcome.CAUGHT
        assert results[fault.name].rightly_blamed


@pytest.mark.slow
def test_no_other_case_sees_it() -> None:
    others = [case for case in CASES if case not in ("autocast", "backward", "patched")]  # patched runs under it
    names = [fault.bridge for fault in autocast.FAULTS]
    assert failed(verify(candidates=names, cases=others, components=["attn", "ln1"])) == []
