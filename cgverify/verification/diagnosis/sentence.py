"""Why a cell failed, as one sentence.

    scores breaks first, everywhere in hook_attn_scores, by 4.19e+03 times its bound and 1.67e+04 ULP from the
    reference; the bridge is 2e+04 times as far from the oracle as the reference; cause: scaled by 1.001; with the right
    tensor put there, the rest holds

First in the order of the computation. What is broken behind it is counted only, since it may be led astray, but hooks
that never fired are all told.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cgverify.common.records import Finding, Verdict
from cgverify.observe.stages import Stage
from cgverify.oracle.parameters import Parameters
from cgverify.verification.check import ObservedCell, ObservedStep
from cgverify.verification.diagnosis.extent import extent, listed
from cgverify.verification.diagnosis.failed import Failed, failed
from cgverify.verification.diagnosis.substitution import confirmation
from cgverify.verification.findings import RAISED, ignores_patch, short

MOST_NAMED = 8


@dataclass(frozen=True)
class _Break:
    """The first stage of a cell that diverged."""

    step: ObservedStep
    stage: Stage
    finding: Finding


def sentence(observed: ObservedCell, findings: Sequence[Finding], parameters: Parameters) -> str:
    """Why a cell failed, without a full stop; empty if it did not."""
    failing = [finding for finding in findings if finding.verdict.fails]
    return "; ".join(_clauses(observed, failing, parameters)) if failing else ""


def _clauses(observed: ObservedCell, failing: Sequence[Finding], parameters: Parameters) -> Iterator[str]:
    missing = [finding for finding in failing if finding.verdict is Verdict.MISSING]
    raised = [finding for finding in failing if finding.tap == RAISED][:1]
    first = _first_broken(observed, failing)
    if missing:
        yield _never_fired([finding.tap for finding in missing])
    if first is not None:
        yield from _broken(first, parameters)
    yield from (finding.message for finding in raised)
    told = [*missing, *raised, *([first.finding] if first is not None else [])]
    rest = [finding for finding in failing if not any(finding is other for other in told)]
    if not told:
        yield rest.pop(0).message
    if rest:
        yield _counted(rest, first)
    if first is not None and (confirmed := confirmation(observed, first.step, first.stage, parameters)):
        yield confirmed


def _first_broken(observed: ObservedCell, failing: Sequence[Finding]) -> _Break | None:
    for step in observed.steps:
        stages = {(stage.name, stage.tap): stage for stage in step.stages}
        for finding in failing:
            stage = stages.get((finding.stage, finding.tap))
            if finding.step == step.name and stage is not None and finding.verdict is Verdict.DIVERGED:
                return _Break(step, stage, finding)
    return None


def _never_fired(taps: Sequence[str]) -> str:
    named = [*taps[:MOST_NAMED], *([f"{len(taps) - MOST_NAMED} more hooks"] if len(taps) > MOST_NAMED else [])]
    return f"{listed(named)} never fired"


def _broken(first: _Break, parameters: Parameters) -> Iterator[str]:
    """Where, by how much, whose error is the larger, and the cause."""
    step, stage, finding = first.step, first.stage, first.finding
    broke = failed(stage, step.candidate.view, parameters)
    if broke is None or not bool(broke.broken.any()):  # another form, or nothing that could be computed
        yield finding.message
        return
    where = extent(broke.broken, stage.axes)
    place = f"at {stage.tap} ({where})" if where else f"everywhere in {stage.tap}"
    meaning = f"{stage.meaning}: " if stage.meaning else ""
    if step.conditions.patch is not None and ignores_patch(step, stage):
        meaning = f"what {step.conditions.patch.tap} returned was not used, or not wholly: "
    yield f"{meaning}{stage.name} breaks first, {place}{_form(broke)}, {_size(finding)}"
    if farther := _farther(step, step.stages.index(stage)):
        yield farther
    if finding.cause:
        yield f"cause: {finding.cause}"


def _form(broke: Failed) -> str:
    """A dtype that is wrong in itself."""
    is_now, must_be = broke.tap.dtype, broke.answer.dtype
    return "" if is_now == must_be else f", which is {short(is_now)} where it must be {short(must_be)}"


def _size(finding: Finding) -> str:
    """In units of the bound, and from the reference."""
    from_reference = "" if not finding.max_ulp else f" and {finding.max_ulp:.3g} ULP from the reference"
    r = finding.r if finding.r is not None else math.inf
    if math.isfinite(r):
        return f"by {r:.3g} times its bound{from_reference}"
    error = finding.candidate_error if finding.candidate_error is not None else math.inf
    if math.isfinite(error):
        return f"by {error:.3g} where no error is allowed{from_reference}"
    return "with values that are not finite, or finite where they must not be"


def _farther(step: ObservedStep, place: int) -> str:
    """Whether the bridge or the reference is farther from the oracle, and how many times; hidden elements aside."""
    bridge, reference = step.candidate.checked.get(place), step.reference.checked.get(place)
    if bridge is None or reference is None:
        return ""
    ours, theirs = (float(side.precision.errors.max()) for side in (bridge, reference))
    if not math.isfinite(ours) or not math.isfinite(theirs) or ours == theirs:
        return ""
    if theirs == 0:
        return "the reference is exact"
    if ours == 0:
        return "the bridge is exact, and the reference is not"
    if ours > theirs:
        return f"the bridge is {ours / theirs:.3g} times as far from the oracle as the reference"
    return f"the reference is {theirs / ours:.3g} times as far from the oracle as the bridge"


def _counted(rest: Sequence[Finding], first: _Break | None) -> str:
    """What else is wrong, as a number: behind the first break, in later forwards, or by itself."""
    number = f"{len(rest)} more {'tap is' if len(rest) == 1 else 'taps are'} wrong"
    steps = {finding.step for finding in rest}
    if first is None or len(steps) > 1 or first.step.name not in steps:
        return f"{number} in {len(steps)} {'forward' if len(steps) == 1 else 'forwards'}"
    return f"{number} behind it"
