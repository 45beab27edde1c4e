"""From checked sides to findings: one per tap, with its verdict, its figures, and a message if it failed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from cgverify.common.printable import described
from cgverify.common.records import Finding, Verdict
from cgverify.observe.bits import digest
from cgverify.observe.components import COMPONENTS, FLAGGED_HOOKS
from cgverify.observe.stages import Stage
from cgverify.verification import messages
from cgverify.verification.check import visible
from cgverify.verification.metrics import difference, verdict
from cgverify.verification.observed import RAISED_TAP, ObservedCell, ObservedStep, StageCheck


def findings_of(step: ObservedStep, attention: str) -> list[Finding]:
    """Return the findings of one step of a cell, tap by tap in the order of the computation.

    Args:
        attention: the implementation of attention that the reference ran.
    """
    reference, candidate = step.reference.observation, step.candidate.observation
    if reference.raised is not None:
        accepts = "" if candidate.raised is not None else "; the candidate accepts it"
        message = f"the reference refuses: {described(reference.raised)}{accepts}"
        return [Finding(step=step.name, tap="", stage="", verdict=Verdict.UNSUPPORTED, message=message)]
    findings = []
    if candidate.raised is not None:
        message = f"the candidate raised where the reference did not: {described(candidate.raised)}"
        findings.append(_diverged(step, RAISED_TAP, "forward", message))
    findings += [
        _finding(step, index, stage, attention)
        for index, stage in enumerate(step.stages)
        if stage.tap in step.candidate.tensors or (stage.required and candidate.raised is None)
    ]
    if candidate.raised is None and candidate.returned != reference.returned:
        message = f"{candidate.returned} was returned, and {reference.returned} by the reference"
        findings.append(_diverged(step, "returned", "form", message))
    findings += [_diverged(step, tap, "conduct", message) for tap, message in candidate.violations]
    return findings


def _diverged(step: ObservedStep, tap: str, stage: str, message: str) -> Finding:
    return Finding(step=step.name, tap=tap, stage=stage, verdict=Verdict.DIVERGED, message=message)


def _finding(step: ObservedStep, index: int, stage: Stage, attention: str) -> Finding:
    """Return the finding of one stage."""
    ours, theirs = step.candidate.tensors.get(stage.tap), step.reference.tensors.get(stage.tap)
    check, reference_check = step.candidate.checks.get(index), step.reference.checks.get(index)
    fields: dict[str, Any] = {
        "step": step.name,
        "tap": stage.tap,
        "stage": stage.name,
        "reference_r": reference_check.r if reference_check else None,
        "reference_error": reference_check.visible_error if reference_check else None,
        "reference_digest": digest(theirs) if theirs is not None else "",
    }
    if ours is None:
        return Finding(**fields, verdict=Verdict.MISSING, message=messages.never_fired([stage.tap]))
    if check is None and theirs is None and (dead := _dead_input(step, index)):
        maker = next((other.name for other in step.stages if other.tap == dead), stage.name)
        message = f"{dead} never fired, so that {stage.name} cannot be checked"
        return Finding(step=step.name, tap=dead, stage=maker, verdict=Verdict.MISSING, message=message)
    fields["shape"] = tuple(ours.shape)
    if check is not None:
        fields |= {"r": check.r, "candidate_error": check.visible_error, **_bits(check)}
    wrong = _wrong_form(stage, ours, theirs, check)
    if wrong:
        return Finding(**fields, verdict=Verdict.DIVERGED, message=wrong)
    distance = None
    if theirs is not None and theirs.shape == ours.shape:
        # With a cache, Hugging Face's rotated key is seen after a cast, so the candidate's is cast too.
        distance = difference(ours.to(theirs.dtype), theirs, visible(stage, step.candidate.tensors))
        fields |= {"max_abs": distance.max_abs, "max_ulp": distance.max_ulp}
    strongest = verdict(check.r if check else None, distance)
    doubt = _doubt_about_reference(step, index, stage, agrees=strongest is Verdict.BITWISE)
    if doubt and check is not None and check.r <= 1 and strongest is not Verdict.BITWISE:
        strongest = Verdict.SUSPECT  # equal tensors have parity, whatever both are
    if strongest is not Verdict.BITWISE:
        # The worst element of the stage if that broke, else the element farthest from the reference.
        broke = check is not None and (check.r > 1 or distance is None)
        worst = check if broke else distance
        fields["at"] = _coordinates(worst.index if worst is not None else 0, ours.shape, stage.axes)
    message = ""
    if strongest is Verdict.DIVERGED:
        unfit = step.candidate.unfit.get(index)
        message = messages.diverged(step, stage, check, unfit, distance, fields["at"])
    elif doubt:
        message = messages.suspect(stage, doubt, agrees=strongest is Verdict.BITWISE)
    elif theirs is None and step.conditions.patch is None and attention in stage.shown_with:
        strongest, message = Verdict.ERROR, messages.no_counterpart(stage.tap)
    return Finding(**fields, verdict=strongest, message=message)


def _doubt_about_reference(step: ObservedStep, index: int, stage: Stage, *, agrees: bool) -> str:
    """Say why Hugging Face's tensor is to blame if the candidate's is within its bound; empty if it is not.

    Args:
        agrees: whether both are the same, bit for bit.
    """
    if index in step.candidate.accepted:
        return ""
    side, ours = step.reference, step.candidate.tensors[stage.tap]
    theirs, check = side.tensors.get(stage.tap), side.checks.get(index)
    if theirs is None:
        return ""
    if theirs.shape != ours.shape:
        return f"has shape {list(theirs.shape)} where it must be {list(ours.shape)}"
    if check is None and index in side.unfit and side.unfit[index].tap in side.tensors:
        return f"cannot be checked, since {side.unfit[index]}"
    if check is None:
        absent = [name for name in side.read.get(index, ()) if name not in side.tensors]
        return f"cannot be checked, since {absent[-1] if absent else stage.tap} was not computed as usual"
    if check.r > 1:
        return f"is off by {check.r:.3g} times its bound"
    if not agrees and not theirs.isfinite().all() and ours.isfinite().all():
        return "is not finite"
    # With a cache, Hugging Face's rotated key may be seen after a cast.
    is_cast = stage.name == "rope" and any(name.endswith("cache_keys") for name in side.tensors)
    return "" if theirs.dtype == check.dtype or is_cast else f"is {messages.wrong_dtype(theirs.dtype, check.dtype)}"


def _dead_input(step: ObservedStep, index: int) -> str:
    """Return the tap that never fired although a stage of the candidate starts from it; empty if all fired."""
    side = step.candidate
    absent = [name for name in side.read.get(index, ()) if name not in side.tensors and not name.startswith("given.")]
    return absent[-1] if absent else ""


def _wrong_form(stage: Stage, ours: torch.Tensor, theirs: torch.Tensor | None, check: StageCheck | None) -> str:
    """Say what is wrong with a tap's shape or dtype; empty if both are right."""
    if theirs is not None and ours.shape != theirs.shape and (check is None or check.r > 1):
        return f"{stage.tap} has shape {list(ours.shape)}, the reference's {list(theirs.shape)}"
    dtype = check.dtype if check is not None else theirs.dtype if theirs is not None else ours.dtype
    if ours.dtype != dtype:
        return f"{stage.tap} is {messages.wrong_dtype(ours.dtype, dtype)}"
    return ""


def _bits(check: StageCheck) -> dict[str, Any]:
    if math.isinf(check.error):  # also for a wrong shape, of which nothing could be measured
        return {"bits": 0.0}
    worst = check.bits.worst_head
    if worst is None:
        return {"bits": check.bits.of_tap}
    return {
        "bits": check.bits.of_tap,
        "head_bits": worst[1],
        "worst_head": worst[0],
        "bits_by_head": check.bits.by_head,
        "errors_by_head": tuple(check.bits.errors.tolist()),
    }


def _coordinates(index: int, shape: torch.Size, axes: tuple[str, ...]) -> str:
    """Write a flat index as `head 3, position 5, …`."""
    if len(shape) != len(axes) or 0 in shape:
        return f"element {index}"
    coordinates = []
    for size in reversed(shape):
        index, coordinate = divmod(index, size)
        coordinates.append(coordinate)
    return ", ".join(f"{axis} {i}" for axis, i in zip(axes, reversed(coordinates), strict=True))


def drop_repeated_missing(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings of a cell, of a hook that never fires only the first."""
    kept: list[Finding] = []
    missing: set[str] = set()
    for finding in findings:
        if finding.verdict is not Verdict.MISSING or finding.tap not in missing:
            kept.append(finding)
        if finding.verdict is Verdict.MISSING:
            missing.add(finding.tap)
    return kept


def silent_hooks(observed: ObservedCell) -> tuple[str, ...]:
    """Return the hooks that fired in no completed step, except required ones and those whose flag was off."""
    component = COMPONENTS.get(observed.cell.kind)
    seen = [step.candidate.observation for step in observed.steps]
    silent = [set(one.silent_hooks) for one in seen if one.raised is None]
    if component is None or not silent:  # no component is the whole model
        return ()
    stages = [*component.stages(False), *(stage for step in observed.steps for stage in step.stages)]
    required = {stage.tap for stage in stages if stage.required}
    on = {flag for step in observed.steps for flag in step.conditions.flags}
    off = {hook for flag, hooks in FLAGGED_HOOKS.get(component.kind, {}).items() if flag not in on for hook in hooks}
    return tuple(sorted(set.intersection(*silent) - required - off))
