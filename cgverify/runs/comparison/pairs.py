"""Find the cells that two lists have in common, and the taps that two results have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cgverify.common.records import Cell, CellResult, Finding

FindingPair = tuple[Finding | None, Finding | None]
"""One tap on both sides. One is None if that side has no such finding."""


@dataclass(frozen=True)
class Pairing:
    """The cells of two lists, each part in the order of its list."""

    pairs: list[tuple[CellResult, CellResult]]
    only_before: list[CellResult]
    only_after: list[CellResult]


def pair_cells(before: Sequence[CellResult], after: Sequence[CellResult], ignored: Collection[str] = ()) -> Pairing:
    """Pair cells that are equal in all fields but the ignored ones.

    Cells with equal weights are paired first. The others are paired whatever their weights are, so that a checkpoint
    can be compared with its next revision.
    """
    rest = {result.cell.id: result for result in before}
    partners: dict[str, CellResult] = {}
    for fields in ({*ignored}, {*ignored, "weights"}):
        names = [name for name in Cell.model_fields if name not in fields]
        old = {_values(result.cell, names): result for result in rest.values()}
        new = {_values(result.cell, names): result for result in after if result.cell.id not in partners}
        for key in old.keys() & new.keys():
            partners[new[key].cell.id] = rest.pop(old[key].cell.id)
    return Pairing(
        pairs=[(partners[result.cell.id], result) for result in after if result.cell.id in partners],
        only_before=list(rest.values()),
        only_after=[result for result in after if result.cell.id not in partners],
    )


def pair_findings(before: CellResult, after: CellResult) -> list[FindingPair]:
    """Pair the findings of a cell by step, tap and stage: those of `after` in order, then those of `before` alone."""
    old, new = _by_tap(before.findings), _by_tap(after.findings)
    gone = [(finding, None) for key, finding in old.items() if key not in new]
    return [*((old.get(key), finding) for key, finding in new.items()), *gone]


def _values(cell: Cell, names: Sequence[str]) -> tuple[object, ...]:
    return tuple(getattr(cell, name) for name in names)


def _by_tap(findings: Sequence[Finding]) -> dict[tuple[str, str, str, int], Finding]:
    """Key findings by step, tap, stage and number, since the stage `conduct` may have several findings at one tap."""
    seen: Counter[tuple[str, str, str]] = Counter()
    keyed = {}
    for finding in findings:
        key = (finding.step, finding.tap, finding.stage)
        keyed[(*key, seen[key])] = finding
        seen[key] += 1
    return keyed
