"""Find the cells that two lists have in common, and the taps that two results have in common."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cgverify.common.records import Cell, CellResult, Finding


@dataclass(frozen=True)
class TapPair:
    """One tap of a cell on both sides. One finding is None if that side has no such finding."""

    cell: Cell
    """The cell of the second side."""
    before: Finding | None
    after: Finding | None

    @property
    def finding(self) -> Finding:
        """The finding of the second side; that of the first if the second has none."""
        found = self.after or self.before
        assert found is not None
        return found

    @property
    def fails(self) -> bool:
        return self.after is not None and self.after.verdict.fails

    @property
    def direction(self) -> int:
        """1 if the verdict is worse, -1 if it is better, 0 if it is neither."""
        if self.before is None or self.after is None:
            return int(self.fails) - int(self.before is not None and self.before.verdict.fails)
        old, new = self.before.verdict, self.after.verdict
        if not (old.compares and new.compares):
            return 0
        return (new.severity > old.severity) - (new.severity < old.severity)

    @property
    def verdict_differs(self) -> bool:
        return (self.before and self.before.verdict) != (self.after and self.after.verdict)

    @property
    def errors(self) -> tuple[float | None, float | None]:
        """The greatest error against the oracle on each side; None if it is unknown."""
        first, second = (None if side is None else side.candidate_error for side in (self.before, self.after))
        return first, second

    @property
    def ratio(self) -> float | None:
        return error_ratio(*self.errors)


def error_ratio(first: float | None, second: float | None) -> float | None:
    """Return the second error divided by the first; None if one is unknown or both are 0."""
    if first is None or second is None or first == second == 0:
        return None
    return second / first if first else math.inf


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


def pair_findings(before: CellResult, after: CellResult) -> list[TapPair]:
    """Pair the findings of a cell by step, tap and stage: those of `after` in order, then those of `before` alone."""
    old, new = _by_tap(before.findings), _by_tap(after.findings)
    return [TapPair(after.cell, old.get(key), new.get(key)) for key in dict.fromkeys((*new, *old))]


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
