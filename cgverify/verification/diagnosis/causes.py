"""The known cause of a failed tap, where there is one: each is a hypothesis that is computed, never guessed.

A hypothesis says what the tap would be if the side had made one certain mistake, computed in float64 from the taps
that the side really had. It is accepted only if the tap holds the bound of that computation. The first that holds is
named, those with the narrowest meaning first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cgverify.common.records import Finding, Verdict
from cgverify.oracle.parameters import Parameters
from cgverify.verification.check import ObservedStep
from cgverify.verification.diagnosis.factor import scaled
from cgverify.verification.diagnosis.failed import Failed, failed
from cgverify.verification.diagnosis.heads import other_heads
from cgverify.verification.diagnosis.projection import other_layout, other_rows
from cgverify.verification.diagnosis.rotation import other_rotation
from cgverify.verification.diagnosis.rounding import less_precise
from cgverify.verification.diagnosis.scoring import other_mask

KNOWN: tuple[Callable[[Failed], Iterator[str]], ...] = (
    *(other_layout, other_rows, other_rotation, other_mask, other_heads, less_precise, scaled),
)
"""Each yields the causes that the tap agrees with."""


def with_causes(findings: list[Finding], step: ObservedStep, parameters: Parameters) -> list[Finding]:
    """The findings of a step, each that failed by a known cause with its name."""
    stages = {(stage.name, stage.tap): stage for stage in step.stages}
    if step.conditions.cast_table:
        parameters = parameters.with_cast_table()
    explained = []
    for finding in findings:
        stage = stages.get((finding.stage, finding.tap))
        cause = ""
        if stage is not None and finding.verdict is Verdict.DIVERGED:
            broke = failed(stage, step.candidate.view, parameters)
            cause = cause_of(broke) if broke is not None and bool(broke.broken.any()) else ""
        update = {"cause": cause, "message": f"{finding.message}; cause: {cause}"}
        explained.append(finding.model_copy(update=update) if cause else finding)
    return explained


def cause_of(broke: Failed) -> str:
    """The first known cause that the tap agrees with, else nothing."""
    for known in KNOWN:
        try:
            for cause in known(broke):
                return cause
        except (KeyError, RuntimeError, IndexError):  # a candidate's taps may be absent, and of any shape
            continue
    return ""
