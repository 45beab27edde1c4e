"""From checked sides to findings: one per tap, with its verdict, its figures, and a sentence where it failed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from cgverify.common.printable import described
from cgverify.common.records import Finding, Verdict
from cgverify.observe.cases import gated
from cgverify.observe.stages import Stage
from cgverify.verification.check import Checked, ObservedCell, ObservedStep, visible
from cgverify.verification.metrics import Difference, difference, verdict

RAISED = "raised"
"""What stands in the place of a tap where the candidate raised."""


def findings_of(step: ObservedStep) -> list[Finding]:
    """What was found in one step of a cell, tap by tap in the order of the computation."""
    reference, candidate = step.reference, step.candidate
    refused, raised = reference.observation.raised, candidate.observation.raised
    if refused is not None:
        accepts = "" if raised is not None else "; the candidate accepts it"
        message = f"the reference refuses: {described(refused)}{accepts}"
        return [Finding(step=step.name, tap="", stage="", verdict=Verdict.UNSUPPORTED, message=message)]
    findings = []
    if raised is not None:
        message = f"the candidate raised where the reference did not: {described(raised)}"
        findings.append(Finding(step=step.name, tap=RAISED, stage="forward", verdict=Verdict.DIVERGED, message=message))
    findings += [
        _finding(step, place, stage)
        for place, stage in enumerate(step.stages)
        if stage.tap in candidate.view or (stage.required and raised is None)
    ]
    if raised is None and candidate.observation.returned != reference.observation.returned:
        message = (
            f"{candidate.observation.returned} was returned, and {reference.observation.returned} by the reference"
        )
        findings.append(
            Finding(step=step.name, tap="returned", stage="form", verdict=Verdict.DIVERGED, message=message)
        )
    for tap, message in candidate.observation.violations:
        findings.append(Finding(step=step.name, tap=tap, stage="conduct", verdict=Verdict.DIVERGED, message=message))
    return findings


def _finding(step: ObservedStep, place: int, stage: Stage) -> Finding:
    reference, candidate = step.reference, step.candidate
    ours, theirs = candidate.view.get(stage.tap), reference.view.get(stage.tap)
    checked, counterpart = candidate.checked.get(place), reference.checked.get(place)
    found: dict[str, Any] = {
        "step": step.name,
        "tap": stage.tap,
        "stage": stage.name,
        "reference_r": counterpart.r if counterpart else None,
        "reference_error": counterpart.error_seen if counterpart else None,
    }
    if ours is None:
        return Finding(**found, verdict=Verdict.MISSING, message=f"{stage.tap} never fired")
    dead = _dead_input(step, place) if checked is None and theirs is None else ""
    if dead:
        makes = next((other.name for other in step.stages if other.tap == dead), stage.name)
        message = f"{dead} never fired, so that {stage.name} cannot be checked"
        return Finding(step=step.name, tap=dead, stage=makes, verdict=Verdict.MISSING, message=message)
    found |= {"shape": tuple(ours.shape)}
    if checked is not None:
        found |= {"r": checked.r, "candidate_error": checked.error_seen, **_bits(checked)}
    wrong = _wrong_form(stage, ours, theirs, checked)
    if wrong:
        return Finding(**found, verdict=Verdict.DIVERGED, message=wrong)
    against = _against_reference(stage, ours, theirs, candidate.view)
    if against is not None:
        found |= {"max_abs": against.max_abs, "max_ulp": against.max_ulp}
    said = verdict(checked.r if checked else None, against)
    if said is not Verdict.BITWISE:
        found |= {"at": _place(_worst_index(checked, against), ours.shape, stage.axes)}
    if said is Verdict.DIVERGED:
        message = _divergence(stage, checked, against, str(found["at"]))
        if stage.meaning:
            message = f"{stage.meaning}: {message}"
        if step.conditions.patch is not None and ignores_patch(step, stage):
            message = f"what {step.conditions.patch.tap} returned was not used, or not wholly: {message}"
        return Finding(**found, verdict=said, message=message)
    suspect = counterpart is not None and counterpart.r > 1
    message = "reference suspect: it breaks its own bound" if suspect else ""
    return Finding(**found, verdict=said, message=message)


def ignores_patch(step: ObservedStep, stage: Stage) -> bool:
    """Whether a stage of the candidate, if it broke, broke on a tensor that a hook had returned."""
    patch = step.conditions.patch
    return patch is not None and patch.tap in step.candidate.read.get(step.stages.index(stage), ())


def _dead_input(step: ObservedStep, place: int) -> str:
    """The tap that never fired, for want of which a stage of the candidate cannot be computed; empty if all did."""
    side = step.candidate
    absent = [name for name in side.read.get(place, ()) if name not in side.view and not name.startswith("given.")]
    return absent[-1] if absent else ""


def _worst_index(checked: Checked | None, against: Difference | None) -> int:
    """The element to point at: the worst of its stage where that broke, else the farthest from the reference."""
    if checked is not None and (checked.r > 1 or against is None):
        return checked.index
    return against.index if against is not None else 0


def _wrong_form(stage: Stage, ours: torch.Tensor, theirs: torch.Tensor | None, checked: Checked | None) -> str | None:
    """What is wrong with a tap's shape or dtype."""
    if theirs is not None and ours.shape != theirs.shape:
        return f"{stage.tap} has shape {list(ours.shape)}, the reference's {list(theirs.shape)}"
    dtype = checked.dtype if checked is not None else theirs.dtype if theirs is not None else ours.dtype
    if ours.dtype != dtype:
        return f"{stage.tap} is {short(ours.dtype)} where it must be {short(dtype)}"
    return None


def _against_reference(
    stage: Stage, ours: torch.Tensor, theirs: torch.Tensor | None, view: Mapping[str, torch.Tensor]
) -> Difference | None:
    if theirs is None:
        return None
    # With a cache Hugging Face's rotated key is seen after its cast; ours is compared after the same.
    ours = ours.to(theirs.dtype)
    return difference(ours, theirs, visible(stage, view))


def _bits(checked: Checked) -> dict[str, Any]:
    worst = checked.precision.worst_head
    if math.isinf(checked.error):  # also where the shape did not fit, and nothing could be measured
        return {"bits": 0.0}
    if worst is None:
        return {"bits": checked.precision.bits}
    return {
        "bits": checked.precision.bits,
        "head_bits": worst[1],
        "worst_head": worst[0],
        "bits_by_head": checked.precision.by_head,
        "errors_by_head": tuple(checked.precision.errors.tolist()),
    }


def _divergence(stage: Stage, checked: Checked | None, against: Difference | None, at: str) -> str:
    apart = f", {against.max_abs:.3g} from the reference ({against.max_ulp:.3g} ULP)" if against else ""
    if checked is None:
        return f"{stage.tap} differs, and a tap that it is computed from never fired or has another shape{apart}"
    if against is not None and math.isinf(against.max_abs):
        return f"{stage.name} is not finite at other elements than the reference, first at {at}"
    return f"{stage.name} is off by {checked.r:.3g} times its bound at {at}{apart}"


def _place(index: int, shape: torch.Size, axes: tuple[str, ...]) -> str:
    """`head 3, position 5, …` of a flat index."""
    if len(shape) != len(axes) or 0 in shape:
        return f"element {index}"
    coordinates = []
    for size in reversed(shape):
        index, coordinate = divmod(index, size)
        coordinates.append(coordinate)
    return ", ".join(f"{axis} {i}" for axis, i in zip(axes, reversed(coordinates), strict=True))


def drop_repeated_missing(findings: Iterable[Finding]) -> list[Finding]:
    """The findings of a cell; of a hook that never fired in several of its forwards only the first."""
    told, missing = [], set()
    for finding in findings:
        if finding.verdict is Verdict.MISSING:
            if finding.tap in missing:
                continue
            missing.add(finding.tap)
        told.append(finding)
    return told


def silent_hooks(observed: ObservedCell) -> tuple[str, ...]:
    """Hooks that fired in no step that ended, other than those whose absence is a finding or whose flag was off."""
    asked = [*observed.component.stages(False), *(stage for step in observed.steps for stage in step.stages)]
    required = {stage.tap for stage in asked if stage.required}
    seen = [step.candidate.observation for step in observed.steps]
    silent = [set(one.silent_hooks) for one in seen if one.raised is None]
    if not silent:
        return ()
    on = {flag for step in observed.steps for flag in step.conditions.flags}
    flagged = gated.hooks(observed.component.kind)
    waiting = {hook for flag, hooks in flagged.items() if flag not in on for hook in hooks}
    return tuple(sorted(set.intersection(*silent) - required - waiting))


def short(dtype: torch.dtype) -> str:
    """`float32`, without torch's name before it."""
    return str(dtype).removeprefix("torch.")
