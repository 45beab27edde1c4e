"""Every fault of the self-test by its name, and the self-test of some candidates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.checkpoint.resolve import resolve
from cgverify.common.records import CellResult
from cgverify.selftest.candidates import KnownCandidate, by_name
from cgverify.selftest.result import SelfTestResult
from cgverify.selftest.seeded import FAULTS
from cgverify.selftest.self_test import MODEL, SelfTest, prompt_of
from cgverify.verification.checkpoint_verifier import CheckpointVerifier
from cgverify.verification.judge import Judge

__getattr__ = by_name(FAULTS)

_EXACT = {
    *("QueryKeySwapped", "QueryKeyValueOrder", "OnePartition", "HalfRotation", "QueryOnlyRotated", "OneHeadUnrotated"),
    *("NarrowRotation", "PositionsIgnored", "PositionsShifted", "MaskOnOtherSideOfScale", "ScaledByModelWidth"),
    *("ScaleSlightlyOff", "SoftmaxInBfloat16", "HeadsSwapped", "OneElementChanged", "ReturnedWeightsZeroed"),
}
STAGES = {fault.candidate: fault.stages for fault in FAULTS if fault.name in _EXACT}
"""Faults of attention for which all of the self-test's stages must be blamed, and no others."""


class ShiftedByOneBit(CodeGenAttentionBridge):
    """The output is wrong by one unit in the last place, and in float64 by half."""

    def _output(self, z: Tensor) -> Tensor:
        output = super()._output(z)
        return output * 1.5 if output.dtype == torch.float64 else torch.nextafter(output, output + 1)


def verify_known(self_test: SelfTest) -> list[CellResult]:
    """Verify all cells of a self-test."""
    source = resolve(MODEL)
    verifier = CheckpointVerifier(source, self_test.candidates(), prompt_of(source), Judge(with_sentence=False))
    return list(verifier.verify_all(self_test.plan(source)))


def run_self_test(
    *known: KnownCandidate, dtypes: Sequence[str] = ("float32",), quick: bool = False
) -> list[SelfTestResult]:
    """Run the self-test of some candidates on the CPU."""
    self_test = SelfTest(known, tuple(dtypes), ("cpu",), quick)
    return list(self_test.results(verify_known(self_test), resolve(MODEL)))
