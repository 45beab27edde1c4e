"""The `model` case in a line for each setting: how the difference from the reference grows with depth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cgverify.common.records import CellResult, Finding, Verdict
from cgverify.plan.cells import AS_CARRIED, CARRIED, GENERATION, TOP_1


def growth(results: Iterable[CellResult]) -> list[str]:
    """A line for each model, candidate and setting that the case was run in, in the order of the results."""
    by_setting: dict[tuple[str, str, str, str, str], list[CellResult]] = {}
    for result in results:
        cell = result.cell
        if cell.case == "model":
            setting = (cell.model, cell.candidate, cell.dtype, cell.device, f"rotary_dim {cell.rotary_dim}")
            by_setting.setdefault(setting, []).append(result)
    lines = []
    for setting, own in by_setting.items():
        parts = [*_depth(own), *_said(own, TOP_1), *_said(own, GENERATION), *_as_carried(own)]
        if parts:
            lines.append(f"whole model · {' · '.join(setting)}: {'; '.join(parts)}")
    return lines


def _depth(results: Sequence[CellResult]) -> list[str]:
    """The difference after the first, the middle and the last of the layers that were run, and in the logits."""
    found = {result.cell: finding for result in results for finding in result.findings if finding.stage == CARRIED}
    layers = sorted(cell.layer for cell in found if cell.layer is not None)
    if not layers:
        return []
    told = dict.fromkeys(layers[place] for place in (0, len(layers) // 2, -1))
    by_name = {cell.component: finding for cell, finding in found.items()}
    names = {**{f"blocks.{layer}": f"after layer {layer}" for layer in told}, "unembed": "in the logits"}
    if all(finding.verdict is Verdict.BITWISE for finding in found.values()):
        errors = [f"{by_name[name].candidate_error:.2g} {where}" for name, where in names.items() if name in by_name]
        return [f"every layer bitwise equal to the reference (from float64: {', '.join(errors)})"]
    apart = [f"{by_name[name].max_abs:.2g} {where}" for name, where in names.items() if name in by_name]
    return [f"max |Δ| from the reference {', '.join(apart)}"]


def _as_carried(results: Sequence[CellResult]) -> list[str]:
    found = _of(results, AS_CARRIED)
    differ = [finding for finding in found if finding.verdict is not Verdict.BITWISE]
    if not found:
        return []
    if not differ:
        return ["booted whole it gives the same bits"]
    return [f"booted whole it differs from {differ[0].step.removeprefix('prompt ')} on"]


def _said(results: Sequence[CellResult], stage: str) -> list[str]:
    return [finding.message for finding in _of(results, stage)]


def _of(results: Sequence[CellResult], stage: str) -> list[Finding]:
    return [finding for result in results for finding in result.findings if finding.stage == stage]
