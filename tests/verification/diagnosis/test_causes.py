"""The cause that is named for a seeded fault is the right one, or none is named."""

from __future__ import annotations

import re
from collections import defaultdict

import faults
import pytest
from hugging_face import TABLE_PER_MODEL
from verifying import failed, verify

from cgverify.selftest.seeded import FAULTS
from cgverify.selftest.self_test import SelfTest
from cgverify.selftest.variants import VARIANTS

OTHER_SIDE = "before" if TABLE_PER_MODEL else "after"
EXACT = {
    faults.QueryKeySwapped: {"K stands in the place of Q", "Q stands in the place of K"},
    faults.QueryKeyValueOrder: {"V stands in the place of K", "K stands in the place of V"},
    faults.OnePartition: {"the fused weight is split as one partition, not four"},
    faults.HalfRotation: {"rotated by halves, not every two, with the angles of pairs"},
    faults.NarrowRotation: {"only the first 14 of 16 dimensions are rotated"},
    faults.PositionsShifted: {"positions shifted by +1"},
    faults.PositionsIgnored: {"positions are ignored and counted from 0"},
    faults.MaskOnOtherSideOfScale: {f"mask {OTHER_SIDE} scaling"},
    faults.QueryOnlyRotated: {"not rotated"},
    faults.ScaledByModelWidth: {"scaled by 1/sqrt(d_model) instead of 1/sqrt(head_dim)"},
    faults.ScaleSlightlyOff: {"scaled by 1.0001"},
    faults.HeadsSwapped: {"heads 0 and 1 have changed places"},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fault_has_its_cause(dtype: str) -> None:
    names = {f"faults:{fault.__name__}": fault for fault in faults.STAGES}
    results = verify(candidates=list(names), components=["attn"], cases=["stress"], dtypes=[dtype], sentences=True)
    named = {names[r.cell.candidate]: {finding.cause for finding in failed([r])} - {""} for r in results}
    how = "in" if dtype == "float32" else "from operands rounded to"  # the pattern is bfloat16 anyway
    assert named.pop(faults.SoftmaxInBfloat16) == {f"computed {how} bfloat16"}
    assert named == {fault: EXACT.get(fault, set()) for fault in named}


RIGHT = {
    **dict.fromkeys(
        ("QueryKeySwapped", "QueryKeyValueOrder", "QueryValueSwapped", "ValueKeyQueryOrder", "KeyValueQueryOrder"),
        "[QKV] stands in the place of [QKV]",
    ),
    "OnePartition": "the fused weight is split as one partition, not four",
    "TwoPartitions": "the fused weight is split as two partitions, not four",
    "EightPartitions": "the fused weight is split as eight partitions, not four",
    "LastPartitionSwapped": "[QK] stands in the place of [QK] in all heads of the last partition",
    "ValueHeadRepeated": "head 3 has what belongs to head 2 of V",
    "HalfRotation": "rotated by halves, not every two, with the angles of pairs",
    "QueryOnlyRotated": "not rotated",
    "KeyOnlyRotated": "not rotated",
    "ShowsUnrotatedQueries": "not rotated",
    "NarrowRotation": "only the first 14 of 16 dimensions are rotated",
    "LastDimensionsRotated": "the last dimensions are rotated, not the first",
    "SineNegated": "rotated backwards",
    "SineCosineExchanged": "sine and cosine exchanged",
    "RotatedTwice": "rotated twice",
    "FrequenciesNotRepeated": "rotated every two with the angles of halves",
    "PositionsShifted": r"positions shifted by \+1",
    "PositionsShiftedBack": "positions shifted by -1",
    "PositionsShiftedByMany": r"positions shifted by \+20",
    "KeysShifted": "positions shifted by -1",
    "RotationInBfloat16": "computed in bfloat16",
    "RotationInModelDtype": "computed in bfloat16",
    "TableInBfloat16": "the sin/cos table was cast to bfloat16",
    "TableInFloat16": "the sin/cos table was cast to float16",
    "PositionsIgnored": "positions are ignored and counted from 0",
    "PositionsOfFirstRow": "all rows have the positions of the first",
    # In a step with one token and one row of positions, any wrong position is a shift: here 9 instead of 400.
    "CachedPositionsIgnored": "positions are ignored and counted from 0|positions shifted by -391",
    "CachedPositionsRestart": "positions are ignored and counted from 0|not rotated, or as at position 0",
    "ScaleSlightlyOff": r"scaled by 1\.0001",
    "ScaleOffByAThousandth": r"scaled by 1\.001",
    "ScaleOffByOnePercent": r"scaled by 0\.99",
    "ScaledByHeads": r"scaled by 1/sqrt\(n_heads\) .*",
    "ScaledByModelWidth": r"scaled by 1/sqrt\(d_model\) .*",
    "ScaledByHeadDim": r"scaled by 1/head_dim .*",
    "ScaledByRotaryDim": r"scaled by 1/sqrt\(rotary_dim\) .*",
    "Unscaled": "not scaled",
    "ShowsUnscaledScores": "not scaled",
    "MaskIgnored": "mask ignored",
    "ShowsHiddenScores": "mask ignored",
    "MaskOnOtherSideOfScale": f"mask {OTHER_SIDE} scaling",
    "SoftMaskHalved": "only half of the mask is added",
    "MaskMadeBoolean": "only what the mask hides is used of it",
    "MaskOfFirstRow": "all rows have the mask of the first",
    "PaddingIgnored": "only the causal part of the mask is used",
    # A single query sees all keys, with a causal mask or without a mask.
    "CachedMaskIgnored": "only the causal part of the mask is used|mask ignored",
    "ScoresInBfloat16": "computed from operands rounded to bfloat16",
    "ScoresInModelDtype": "computed from operands rounded to bfloat16",
    "ScoresInFloat16Operands": "computed from operands rounded to (float16|float16 or TF32)",
    "ScoresInTF32": "computed from operands rounded to (TF32|float16 or TF32)",
    "SoftmaxInBfloat16": "computed (in|from (inputs|operands) rounded to) bfloat16",
    "SoftmaxInFloat16": "computed (in|from (inputs|operands) rounded to) float16",
    "PatternScaled": r"scaled by 1\.001",
    "PatternInBfloat16": "the result was rounded to bfloat16",
    "ShowsHeadsInAnotherOrder": "heads stand in another order",
    "ResultsInReverse": "heads stand in another order",
    "HeadsSwapped": "heads 0 and 1 have changed places",
    "MixInBfloat16": "computed from operands rounded to bfloat16",
    "MixInTF32": "computed from operands rounded to (TF32|float16 or TF32)",
    "OutputScaled": r"scaled by 1\.001",
    "OutputInBfloat16": "the result was rounded to bfloat16",
    # Autocast is to bfloat16 and to float16, whose mantissa is as long as that of TF32.
    **dict.fromkeys(
        ("CacheInLowPrecision", "KeysRoundedInCache"),
        "computed from operands rounded to (bfloat16|float16|float16 or TF32)",
    ),
    "CacheInBfloat16": "computed from operands rounded to bfloat16|the result was rounded to bfloat16",
    **dict.fromkeys(
        ("projections_in_tf32", "output_in_tf32", "mlp_out_in_tf32"),
        "computed from operands rounded to (TF32|float16 or TF32)",
    ),
    "projections_in_bfloat16": "the result was rounded to bfloat16",
    "projections_of_rounded_input": "computed from inputs rounded to bfloat16",
    **dict.fromkeys(
        ("QueryWeightsInBfloat16", "mlp_in_weights_in_bfloat16", "unembedding_in_bfloat16", "embedding_in_bfloat16"),
        "computed with weights rounded to bfloat16",
    ),
    "OutputWeightsInFloat16": r"scaled by 1\.0002\d?",
    "gelu_in_bfloat16": "computed from operands rounded to bfloat16",
    "sum_in_bfloat16": "computed from operands rounded to bfloat16",
    "norm_in_bfloat16": "computed in bfloat16|the result was rounded to bfloat16",
    "DropoutScaleMissing": r"scaled by 0\.9",
    "ScaledByOneAndP": r"scaled by 0\.99",
    "ValueGradientScaled": r"scaled by 1\.02",
    "OutputGradientReversed": "the sign is reversed",
}
"""The cause that may be named for each fault. None may be named for other faults, nor for a variant."""
NAMED_AT_LEAST = {"float32": 75, "bfloat16": 55}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", NAMED_AT_LEAST)
def test_cause_named_in_the_self_test_is_right(dtype: str) -> None:
    self_test = SelfTest((*FAULTS, *VARIANTS), (dtype,), ("cpu",), quick=True)
    named: dict[str, set[str]] = defaultdict(set)
    for result in faults.verify_known(self_test):
        named[result.cell.candidate.rpartition(":")[2]] |= {f.cause for f in result.findings if f.cause}
    wrong = {name: {c for c in causes if not re.fullmatch(RIGHT.get(name, ""), c)} for name, causes in named.items()}
    assert {name: causes for name, causes in wrong.items() if causes} == {}
    assert sum(bool(causes) for causes in named.values()) >= NAMED_AT_LEAST[dtype]
