"""Confirmation: with the oracle's tensor at the first stage that broke, does the rest of the forward hold?

The candidate runs the forward once more with a hook that returns what the tap should have been, and every stage behind
it is judged again by its bound. A stage that still fails is wrong by itself; one that holds now had been led astray.
"""

from __future__ import annotations

from dataclasses import replace

from cgverify.common.printable import described
from cgverify.common.records import Finding
from cgverify.observe.cases.patched import after
from cgverify.observe.conditions import Substitute
from cgverify.observe.stages import Stage, expected_tap
from cgverify.oracle.parameters import Parameters
from cgverify.verification.check import ObservedCell, ObservedStep, Side, check_stages
from cgverify.verification.diagnosis.extent import listed
from cgverify.verification.findings import findings_of

MOST_NAMED = 3


def confirmation(observed: ObservedCell, step: ObservedStep, stage: Stage, parameters: Parameters) -> str:
    """What is left wrong, in words; nothing where the tap is no hook, or what it should be is not known."""
    answer = expected_tap(stage, step.candidate.view, parameters)
    can_be_patched = stage.tap.rpartition(".")[2].startswith("hook_") and step.conditions.patch is None
    if answer is None or not can_be_patched or step.conditions.cotangent is not None:
        return ""
    again = observed.again(step, Substitute(stage.tap, answer.value.to(answer.dtype)))
    if again is None or stage.tap not in again.candidate.observation.taps:
        return ""
    raised = again.candidate.observation.raised
    if raised is not None:
        return f"with the right tensor put there, it still raises {described(raised)}"
    left = _still_wrong(again, stage, observed.component.kind, parameters)
    if not left:
        return "with the right tensor put there, the rest holds"
    named = left[:MOST_NAMED] + ([f"{len(left) - MOST_NAMED} more"] if len(left) > MOST_NAMED else [])
    return f"with the right tensor put there, {listed(named)} {'is' if len(left) == 1 else 'are'} wrong too"


def _still_wrong(again: ObservedStep, stage: Stage, kind: str, parameters: Parameters) -> list[str]:
    """Stages behind the substituted tap that do not hold, each once, with their taps where the name says too little."""
    # The reference is left out: its taps need not be matched by what follows from another tensor.
    alone = Side(again.reference.observation, {})
    judged = replace(again, stages=after(stage.tap, again.stages, kind), reference=alone)
    check_stages([judged], parameters)
    failing = [finding for finding in findings_of(judged) if finding.verdict.fails and finding.stage != "conduct"]
    return list(dict.fromkeys(_name(finding, stage) for finding in failing))


def _name(finding: Finding, stage: Stage) -> str:
    return f"{finding.stage} at {finding.tap}" if finding.stage == stage.name else finding.stage
