"""Confirmation of a diagnosis: with the oracle's tensor at the first stage that breaks, does the rest hold?

The candidate runs the forward again with a hook that returns what the tap should have been, and every stage behind it
is compared with its bound again. A stage that still fails is wrong on its own; any other failed because of the first.
"""

from __future__ import annotations

from dataclasses import replace

from cgverify.common.printable import described
from cgverify.common.records import Cell, Finding
from cgverify.observe.conditions import Substitute
from cgverify.observe.replacement import stages_after_replacing
from cgverify.observe.stages import Stage
from cgverify.oracle.parameters import Parameters
from cgverify.verification.check import check_stages
from cgverify.verification.diagnosis.extent import listed
from cgverify.verification.diagnosis.mismatch import CandidateStage
from cgverify.verification.findings import findings_of
from cgverify.verification.observed import ObservedCell, ObservedSide, ObservedStep

MOST_NAMED = 3


def confirmation(observed: ObservedCell, first: CandidateStage) -> str:
    """Say what is still wrong; empty if the tap is not a hook or its right value cannot be computed."""
    step, stage, expected = first.step, first.stage, first.expected
    is_hook = stage.tap.rpartition(".")[2].startswith("hook_")
    if not is_hook or step.conditions.patch is not None or step.conditions.cotangent is not None:
        return ""
    tap = step.candidate.tensors.get(stage.tap)
    if expected is None or observed.rerun is None or (tap is not None and tap.numel() != expected.value.numel()):
        return ""
    patched = observed.rerun(step, Substitute(stage.tap, expected.value.to(expected.dtype)))
    if patched is None or stage.tap not in patched.candidate.observation.taps:
        return ""
    raised = patched.candidate.observation.raised
    if raised is not None:
        return f"with the right tensor put there, it still raises {described(raised)}"
    wrong = _still_wrong(patched, stage, observed.cell, first.parameters)
    if not wrong:
        return "with the right tensor put there, the rest holds"
    named = wrong[:MOST_NAMED] + ([f"{len(wrong) - MOST_NAMED} more"] if len(wrong) > MOST_NAMED else [])
    return f"with the right tensor put there, {listed(named)} {'is' if len(wrong) == 1 else 'are'} wrong too"


def _still_wrong(patched: ObservedStep, stage: Stage, cell: Cell, parameters: Parameters) -> list[str]:
    """Name each stage behind the substituted tap that fails, with its tap if the name is the first stage's."""
    # Without the reference's taps: what follows from another tensor need not match them.
    reference = ObservedSide(patched.reference.observation, {})
    step = replace(patched, stages=stages_after_replacing(stage.tap, patched.stages, cell.kind), reference=reference)
    check_stages([step], parameters)
    found = findings_of(step, cell.attention)
    failing = [finding for finding in found if finding.verdict.fails and finding.stage != "conduct"]
    return list(dict.fromkeys(_name(finding, stage) for finding in failing))


def _name(finding: Finding, stage: Stage) -> str:
    return f"{finding.stage} at {finding.tap}" if finding.stage == stage.name else finding.stage
