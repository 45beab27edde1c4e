"""The known cause of a failed tap, if there is one: a hypothesis that is computed, never guessed.

A hypothesis says what the tap would be if the candidate had made one certain mistake, computed in float64 from the
candidate's own taps. It is accepted only if the tap is within the bound of that computation. The first that is accepted
is named; those with the narrowest meaning are tried first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cgverify.verification.diagnosis.layout import other_heads, other_layout, other_rows
from cgverify.verification.diagnosis.mismatch import Mismatch
from cgverify.verification.diagnosis.precision import less_precise
from cgverify.verification.diagnosis.rotation import other_rotation
from cgverify.verification.diagnosis.scores import other_mask, scaled

HYPOTHESES: tuple[Callable[[Mismatch], Iterator[str]], ...] = (
    *(other_layout, other_rows, other_rotation, other_mask, other_heads, less_precise, scaled),
)
"""Each yields the causes that the tap agrees with."""


def cause_of(mismatch: Mismatch) -> str:
    """Return the first known cause that the tap agrees with; empty if there is none."""
    for hypothesis in HYPOTHESES:
        for cause in hypothesis(mismatch):
            return cause
    return ""
