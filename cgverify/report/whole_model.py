"""The case `model` in a line for each setting: how the difference from the reference grows with depth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cgverify.common.records import CellResult, Finding, Verdict
from cgverify.plan.cases import AS_CARRIED, CARRIED, GENERATION, TOP_1
from cgverify.report.frames import setting_of


def whole_model_lines(results: Iterable[CellResult]) -> list[str]:
    """Return a line for each setting in which the case was run, in the order of the results."""
    by_setting: dict[tuple[str, ...], list[CellResult]] = {}
    for result in results:
        if result.cell.case == "model":
            by_setting.setdefault(setting_of(result.cell), []).append(result)
    lines = []
    for setting, own in by_setting.items():
        messages = [finding.message for stage in (TOP_1, GENERATION) for finding in _of_stage(own, stage)]
        parts = [*_depth(own), *messages, *_as_carried(own)]
        if parts:
            lines.append(f"whole model · {' · '.join(setting)}: {'; '.join(parts)}")
    return lines


def _depth(results: Sequence[CellResult]) -> list[str]:
    """Describe the difference after the first, the middle and the last layer that were run, and in the logits."""
    found = {result.cell: finding for result in results for finding in result.findings if finding.stage == CARRIED}
    layers = sorted(cell.layer for cell in found if cell.layer is not None)
    if not layers:
        return []
    shown = dict.fromkeys(layers[number] for number in (0, len(layers) // 2, -1))
    by_name = {cell.component: finding for cell, finding in found.items()}
    names = {**{f"blocks.{layer}": f"after layer {layer}" for layer in shown}, "unembed": "in the logits"}
    measured = [(by_name[name], where) for name, where in names.items() if name in by_name]
    if all(finding.verdict is Verdict.BITWISE for finding in found.values()):
        errors = ", ".join(f"{finding.candidate_error:.2g} {where}" for finding, where in measured)
        return [f"every layer bitwise equal to the reference (from float64: {errors})"]
    differences = ", ".join(f"{finding.max_abs:.2g} {where}" for finding, where in measured)
    return [f"max |Δ| from the reference {differences}"]


def _as_carried(results: Sequence[CellResult]) -> list[str]:
    """Say whether the model that is booted whole gives the bits of its blocks that were run one by one."""
    found = _of_stage(results, AS_CARRIED)
    if not found:
        return []
    for finding in found:
        if finding.verdict is not Verdict.BITWISE:
            return [f"booted whole it differs from {finding.step.removeprefix('prompt ')} on"]
    return ["booted whole it gives the same bits"]


def _of_stage(results: Sequence[CellResult], stage: str) -> list[Finding]:
    return [finding for result in results for finding in result.findings if finding.stage == stage]
