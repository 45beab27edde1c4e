"""Texts about a stage that failed: the message of its finding, with the cause, and the sentence about the cell.

    scores breaks first, everywhere in hook_attn_scores, by 4.19e+03 times its bound and 1.67e+04 ULP from the
    reference; the bridge is 2e+04 times as far from the oracle as the reference; cause: scaled by 1.001; with the right
    tensor put there, the rest holds

A sentence names the first stage that breaks in the order of the computation, and every hook that never fired. Failures
behind the first stage may follow from it, so they are only counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import torch

from cgverify.common.records import Finding, Verdict
from cgverify.observe.stages import Stage, UnfitTapError
from cgverify.verification.diagnosis.extent import extent, listed
from cgverify.verification.diagnosis.mismatch import CandidateStage
from cgverify.verification.metrics import Difference
from cgverify.verification.observed import RAISED_TAP, ObservedStep, StageCheck

MOST_NAMED = 8


# --- messages of findings ---------------------------------------------------------------------------------------------


def never_fired(taps: Sequence[str]) -> str:
    named = [*taps[:MOST_NAMED], *([f"{len(taps) - MOST_NAMED} more hooks"] if len(taps) > MOST_NAMED else [])]
    return f"{listed(named)} never fired"


def wrong_dtype(dtype: torch.dtype, expected: torch.dtype) -> str:
    return f"{_short(dtype)} where it must be {_short(expected)}"


def diverged(
    step: ObservedStep,
    stage: Stage,
    check: StageCheck | None,
    unfit: UnfitTapError | None,
    distance: Difference | None,
    at: str,
) -> str:
    """Say how a tap of the right form diverged."""
    from_reference = f", {distance.max_abs:.3g} from the reference ({distance.max_ulp:.3g} ULP)" if distance else ""
    if check is None:
        why = f", because {unfit}" if unfit is not None else ""
        message = f"{stage.tap} differs{from_reference}, and {stage.name} cannot be checked{why}"
    elif distance is not None and math.isinf(distance.max_abs):
        message = f"{stage.name} is not finite at other elements than the reference, first at {at}"
    else:
        message = f"{stage.name} is off by {check.r:.3g} times its bound at {at}{from_reference}"
    meaning = f"{stage.meaning}: " if stage.meaning else ""
    return f"{_patch_ignored(step, stage)}{meaning}{message}"


def no_counterpart(tap: str) -> str:
    return (
        f"Hugging Face's side shows no {tap}, which it must show, so that parity was not compared there: transformers "
        f"{version('transformers')} may compute it in another way than the versions that this cgverify is for."
    )


def suspect(stage: Stage, doubt: str, agrees: bool) -> str:
    """Say that Hugging Face's tensor is not one that its stage can give, and what may be the reason.

    Args:
        doubt: what is wrong with it: `is off by 3 times its bound`.
        agrees: whether the bridge has the same bits.
    """
    side = f"{stage.name} of Hugging Face's side {doubt}"
    if agrees:
        return f"{side}, and the bridge has the same bits"
    return (
        f"{side}, and the bridge is within its bound: the reference's modules or weights may have been changed, it may "
        "have torch hooks, or a kernel of this device may compute in a lower precision"
    )


def with_cause(finding: Finding, cause: str) -> Finding:
    return finding.model_copy(update={"cause": cause, "message": f"{finding.message}; cause: {cause}"})


def _patch_ignored(step: ObservedStep, stage: Stage) -> str:
    """Say whose tensor was not used, if a stage starts from a tensor that a hook returned."""
    taps = " and ".join(step.patches_read(stage))
    return f"what {taps} returned was not used, or not wholly: " if taps else ""


# --- the sentence about a cell ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FirstBreak:
    """The first stage of a cell that diverged."""

    stage: CandidateStage
    finding: Finding


def cell_sentence(findings: Sequence[Finding], first: FirstBreak | None, confirmed: str) -> str:
    """Say why a cell failed, without a full stop; empty if it did not fail.

    Args:
        confirmed: what is still wrong if the first stage is given its right tensor; empty if that was not tried.
    """
    failing = [finding for finding in findings if finding.verdict.fails]
    return "; ".join([*_clauses(failing, first), *([confirmed] if confirmed else [])]) if failing else ""


def _clauses(failing: Sequence[Finding], first: FirstBreak | None) -> Iterator[str]:
    missing = [finding for finding in failing if finding.verdict is Verdict.MISSING]
    raised = [finding for finding in failing if finding.tap == RAISED_TAP][:1]
    if missing:
        yield never_fired([finding.tap for finding in missing])
    if first is not None:
        yield from _break(first)
    yield from (finding.message for finding in raised)
    named = [*missing, *raised, *([first.finding] if first is not None else [])]
    rest = [finding for finding in failing if not any(finding is other for other in named)]
    if not named:
        yield rest.pop(0).message
    if rest:
        yield _count(rest, first)


def _break(first: FirstBreak) -> Iterator[str]:
    """Say where a stage breaks and by how much, which side is farther from the oracle, and the cause."""
    step, stage, mismatch = first.stage.step, first.stage.stage, first.stage.mismatch
    if mismatch is None:
        yield first.finding.message
        return
    where = extent(mismatch.broken, stage.axes)
    place = f"at {stage.tap} ({where})" if where else f"everywhere in {stage.tap}"
    prefix = _patch_ignored(step, stage) or (f"{stage.meaning}: " if stage.meaning else "")
    dtype, expected = mismatch.tap.dtype, mismatch.expected.dtype
    form = "" if dtype == expected else f", which is {wrong_dtype(dtype, expected)}"
    yield f"{prefix}{stage.name} breaks first, {place}{form}, {_size(first.finding)}"
    if farther := _farther(step, step.stages.index(stage)):
        yield farther
    if first.finding.cause:
        yield f"cause: {first.finding.cause}"


def _size(finding: Finding) -> str:
    """Say how far a tap is from its bound and from the reference."""
    from_reference = "" if not finding.max_ulp else f" and {finding.max_ulp:.3g} ULP from the reference"
    r = finding.r if finding.r is not None else math.inf
    if math.isfinite(r):
        return f"by {r:.3g} times its bound{from_reference}"
    error = finding.candidate_error if finding.candidate_error is not None else math.inf
    if math.isfinite(error):
        return f"by {error:.3g} where no error is allowed{from_reference}"
    return "with values that are not finite, or finite where they must not be"


def _farther(step: ObservedStep, index: int) -> str:
    """Say which side is farther from the oracle, and how many times; hidden elements do not count."""
    bridge, reference = step.candidate.checks.get(index), step.reference.checks.get(index)
    if bridge is None or reference is None:
        return ""
    ours, theirs = (float(check.bits.errors.max()) for check in (bridge, reference))
    if not math.isfinite(ours) or not math.isfinite(theirs) or ours == theirs:
        return ""
    if theirs == 0:
        return "the reference is exact"
    if ours == 0:
        return "the bridge is exact, and the reference is not"
    if ours > theirs:
        return f"the bridge is {ours / theirs:.3g} times as far from the oracle as the reference"
    return f"the reference is {theirs / ours:.3g} times as far from the oracle as the bridge"


def _count(rest: Sequence[Finding], first: FirstBreak | None) -> str:
    """Count the other failures: behind the first break, or in how many forwards."""
    number = f"{len(rest)} more {'tap is' if len(rest) == 1 else 'taps are'} wrong"
    steps = {finding.step for finding in rest}
    if first is None or len(steps) > 1 or first.finding.step not in steps:
        return f"{number} in {len(steps)} {'forward' if len(steps) == 1 else 'forwards'}"
    return f"{number} behind it"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
