"""Changes of many cells, told once: where it tells most, and what merely follows apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cgverify.report.figures import figure
from cgverify.report.sections import counted
from cgverify.runs.comparison.pairs import TapPair


@dataclass(frozen=True)
class Fold:
    """Changes that are one and the same in several cells: told once, where it tells most."""

    change: TapPair
    cells: int
    layers: tuple[int, ...]

    @property
    def places(self) -> str:
        """How many cells more, and in which layers: one layer out of many is itself a lead."""
        if self.cells == 1:
            return ""
        layers = {0: "", 1: ", all in layer "}.get(len(self.layers), ", in layers ") + _ranges(self.layers)
        return f" (and in {counted(self.cells - 1, 'more cell')}{layers})"

    @property
    def sentence(self) -> str:
        change, cell = self.change, self.change.cell
        step = f" {change.finding.step}" if change.finding.step not in ("", "forward") else ""
        what = f"{change.finding.tap} ({change.finding.stage})" if change.finding.tap else "the cell"
        message = f": {change.after.message.rstrip('.')}" if change.after and change.after.message else ""
        where = f"{cell.component}, {cell.candidate} in {cell.dtype}, case {cell.case}{step}"
        return f"{where}: {what} {_from_to(change)}{message}{self.places}."


def folded(changes: Iterable[TapPair]) -> list[Fold]:
    """Changes of one tap, from one verdict to another, over cells; those that fail first."""
    found: dict[tuple[object, ...], list[TapPair]] = {}
    for change in changes:
        cell, finding = change.cell, change.finding
        setting = (cell.model, cell.candidate, cell.dtype, cell.device)
        key = (*setting, finding.stage, bare_tap(finding.tap), *verdicts(change))
        found.setdefault(key, []).append(change)
    folds = [
        Fold(
            max(own, key=lambda change: (change.cell.kind != "block", change.finding.r or 0.0)),
            len({change.cell.id for change in own}),
            tuple(sorted({change.cell.layer for change in own if change.cell.layer is not None})),
        )
        for own in found.values()
    ]
    return sorted(folds, key=lambda fold: not fold.change.fails)


def with_consequences_apart(worse: Sequence[TapPair]) -> tuple[list[TapPair], list[TapPair]]:
    """What got worse by itself, and what holds its bound but comes, in its cell, behind a tap that fails now."""
    failing: set[str] = set()
    causes: list[TapPair] = []
    behind: list[TapPair] = []
    for change in worse:
        consequence = change.cell.id in failing and not change.fails
        (behind if consequence else causes).append(change)
        if change.fails:
            failing.add(change.cell.id)
    return causes, behind


def verdicts(change: TapPair) -> tuple[str, str]:
    """Before and after."""
    before, after = change.before, change.after
    return before.verdict.value if before else "not found", after.verdict.value if after else "not found"


def _from_to(change: TapPair) -> str:
    before, after = change.before, change.after
    told = " → ".join(verdicts(change))
    if before is not None and after is not None and before.r != after.r:
        told += f", r {figure(before.r)} → {figure(after.r)}"
    return told


def bare_tap(tap: str) -> str:
    """A tap's name in its own component, whether that was verified by itself or in its block."""
    return tap.removeprefix("attn.").removeprefix("mlp.").removeprefix("ln1.")


def _ranges(numbers: Sequence[int]) -> str:
    """`0, 2-4` of 0, 2, 3 and 4."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
