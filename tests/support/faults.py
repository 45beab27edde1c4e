"""Some of the exam's faults of attention, for tests that look closer than the exam does."""

from __future__ import annotations

from typing import Any

from cgverify.selftest.seeded.hooks import ReturnedWeightsZeroed
from cgverify.selftest.seeded.layout import OnePartition, QueryKeySwapped, QueryKeyValueOrder
from cgverify.selftest.seeded.mixing import HeadsSwapped, OneElementChanged, SoftmaxInBfloat16
from cgverify.selftest.seeded.rotation import (
    HalfRotation,
    NarrowRotation,
    OneHeadUnrotated,
    PositionsIgnored,
    PositionsShifted,
    QueryOnlyRotated,
)
from cgverify.selftest.seeded.scores import MaskAfterScaling, ScaledByModelWidth, ScaleSlightlyOff

STAGES: dict[type[Any], set[str]] = {
    QueryKeySwapped: {"project_q", "project_k"},
    QueryKeyValueOrder: {"project_k", "project_v"},
    OnePartition: {"project_q", "project_k", "project_v"},
    HalfRotation: {"rope"},
    QueryOnlyRotated: {"rope"},
    OneHeadUnrotated: {"rope"},
    NarrowRotation: {"rope"},
    PositionsIgnored: {"rope"},
    PositionsShifted: {"rope"},
    MaskAfterScaling: {"scores"},
    ScaledByModelWidth: {"scores"},
    ScaleSlightlyOff: {"scores"},
    SoftmaxInBfloat16: {"softmax"},
    HeadsSwapped: {"mix"},
    OneElementChanged: {"mix"},
    ReturnedWeightsZeroed: {"returned"},
}
"""All stages that must be blamed in attention itself, and no others."""
