"""A known cause is named for its fault, and none is named for a fault of another kind."""

from __future__ import annotations

import faults
import pytest
from verification import failed, verify

CAUSES = {
    faults.QueryKeySwapped: {"K stands in the place of Q", "Q stands in the place of K"},
    faults.QueryKeyValueOrder: {"V stands in the place of K", "K stands in the place of V"},
    faults.OnePartition: {"the fused weight is split as one partition, not four"},
    faults.PositionsShifted: {"positions shifted by +1"},
    faults.MaskAfterScaling: {"mask after scaling"},
    faults.QueryOnlyRotated: {"not rotated"},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", faults.STAGES, ids=lambda fault: fault.__name__)
def test_causes(fault: type, dtype: str) -> None:
    axes = {"components": ["attn"], "cases": ["stress"], "dtypes": [dtype]}
    found = failed(verify(candidates=[f"faults:{fault.__name__}"], **axes))
    assert {finding.cause for finding in found} == CAUSES.get(fault, {""})
