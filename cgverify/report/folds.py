"""Changes that several cells share, as one sentence each, without those that only follow from others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cgverify.report.numbers import counted, figure
from cgverify.report.outcome import bare_tap, place
from cgverify.runs.comparison.pairs import TapPair


@dataclass(frozen=True)
class Fold:
    """The change of a tap from one verdict to another, which several cells may share."""

    change: TapPair
    """The change in the cell where it is clearest."""
    cells: int
    layers: tuple[int, ...]

    @property
    def sentence(self) -> str:
        finding, after = self.change.finding, self.change.after
        what = f"{finding.tap} ({finding.stage})" if finding.tap else "the cell"
        message = f": {after.message.rstrip('.')}" if after and after.message else ""
        return f"{place(self.change.cell, finding.step)}: {what} {_from_to(self.change)}{message}{self._others}."

    @property
    def _others(self) -> str:
        """The number of other cells and all layers. That a change is in one layer only is a clue by itself."""
        if self.cells == 1:
            return ""
        layers = {0: "", 1: ", all in layer "}.get(len(self.layers), ", in layers ") + _ranges(self.layers)
        return f" (and in {counted(self.cells - 1, 'more cell')}{layers})"


def folded(changes: Iterable[TapPair]) -> list[Fold]:
    """Group changes of one tap from one verdict to another. Groups that fail come first."""
    found: dict[tuple[object, ...], list[TapPair]] = {}
    for change in changes:
        cell, finding = change.cell, change.finding
        setting = (cell.model, cell.candidate, cell.dtype, cell.device)
        key = (*setting, finding.stage, bare_tap(finding.tap), *verdict_names(change))
        found.setdefault(key, []).append(change)
    folds = [
        Fold(
            max(own, key=lambda change: (change.cell.kind != "block", change.finding.r or 0.0)),
            cells=len({change.cell.id for change in own}),
            layers=tuple(sorted({change.cell.layer for change in own if change.cell.layer is not None})),
        )
        for own in found.values()
    ]
    return sorted(folds, key=lambda fold: not fold.change.fails)


def split_consequences(worse: Sequence[TapPair]) -> tuple[list[TapPair], list[TapPair]]:
    """Separate causes from consequences: taps within their bound that come, in their cell, after a tap that fails."""
    failing: set[str] = set()
    causes: list[TapPair] = []
    consequences: list[TapPair] = []
    for change in worse:
        follows = change.cell.id in failing and not change.fails
        (consequences if follows else causes).append(change)
        if change.fails:
            failing.add(change.cell.id)
    return causes, consequences


def verdict_names(pair: TapPair) -> tuple[str, str]:
    """Return the verdicts of both sides, or `not found`."""
    before, after = (finding.verdict.value if finding else "not found" for finding in (pair.before, pair.after))
    return before, after


def _from_to(change: TapPair) -> str:
    before, after = change.before, change.after
    text = " → ".join(verdict_names(change))
    if before is not None and after is not None and before.r != after.r:
        text += f", r {figure(before.r)} → {figure(after.r)}"
    return text


def _ranges(numbers: Sequence[int]) -> str:
    """Return `0, 2-4` for 0, 2, 3 and 4."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
