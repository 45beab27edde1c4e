"""Verify one correct bridge against changed references, as `cgverify.verify(bridge, reference)` does."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from transformers import CodeGenForCausalLM

from cgverify.bridge import boot
from cgverify.checkpoint.names import NANO
from cgverify.common.errors import PairError
from cgverify.common.records import CellResult, Finding, Verdict
from cgverify.plan.axes import Axes
from cgverify.plan.cells import cells
from cgverify.selftest.candidates import KnownReference, ReferenceFault
from cgverify.selftest.result import Outcome, SelfTestResult
from cgverify.selftest.self_test import LAYER
from cgverify.verification.loaded_pair import LoadedPair

CASES = ("stress", "default", "decode")


def reference_results(
    known: Sequence[KnownReference], dtypes: Sequence[str], devices: Sequence[str], quick: bool
) -> Iterator[SelfTestResult]:
    """Yield a result for each reference, dtype and device, in the order of the references.

    Args:
        quick: run only the first kind of component and the first case.
    """
    settings = [(dtype, device) for dtype in dtypes for device in devices]
    models = {setting: _load(*setting) for setting in settings if known}
    bridges = {setting: boot(copy.deepcopy(model)) for setting, model in models.items()}
    for reference in known:
        for dtype, device in settings:
            result = SelfTestResult(reference, dtype, device, Outcome.MISSED)
            changed = copy.deepcopy(models[dtype, device])
            try:
                with reference.candidate(changed):
                    finished = _verify(LoadedPair(bridges[dtype, device], changed), reference.kinds, quick)
            except PairError as error:
                yield _refused(result, str(error))
            else:
                yield _run(result, finished)


def _load(dtype: str, device: str) -> CodeGenForCausalLM:
    return CodeGenForCausalLM.from_pretrained(NANO, dtype=getattr(torch, dtype)).to(torch.device(device)).eval()


def _verify(pair: LoadedPair, kinds: Sequence[str], quick: bool) -> list[CellResult]:
    axes = Axes(
        candidates=["cgverify"],
        dtypes=[pair.dtype],
        devices=[pair.device],
        layers=[LAYER],
        components=list(kinds[:1] if quick else kinds),
        cases=list(CASES[:1] if quick else CASES),
    )
    return list(pair.verify(cells(pair.checkpoint, axes)))


def _refused(result: SelfTestResult, sentence: str) -> SelfTestResult:
    """Return the result of a pair that was refused with a sentence."""
    outcome = Outcome.FALSE_ALARM
    if isinstance(result.known, ReferenceFault):
        outcome = Outcome.REFUSED if result.known.named in sentence else Outcome.WRONGLY_BLAMED
    first = Finding(step="", tap="", stage="", verdict=Verdict.ERROR, message=sentence)
    return replace(result, outcome=outcome, first=first)


def _run(result: SelfTestResult, finished: Sequence[CellResult]) -> SelfTestResult:
    """Return the result of a pair that was verified."""
    known, findings = result.known, [finding for cell in finished for finding in cell.findings]
    failed = [finding for finding in findings if finding.verdict.fails]
    if not failed:
        held = not isinstance(known, ReferenceFault) and all(finding.verdict.compares for finding in findings)
        return replace(result, outcome=Outcome.HELD if held else Outcome.MISSED)
    outcome = Outcome.FALSE_ALARM
    if isinstance(known, ReferenceFault):
        rightly = all(finding.verdict is Verdict.SUSPECT and finding.stage in known.stages for finding in failed)
        outcome = Outcome.SUSPECT if rightly and known.named in failed[0].message else Outcome.WRONGLY_BLAMED
    blamed = tuple(dict.fromkeys(finding.stage for finding in failed))
    case = next(cell.cell.case for cell in finished if cell.verdict.fails)
    return replace(result, outcome=outcome, blamed=blamed, case=case, first=failed[0])
