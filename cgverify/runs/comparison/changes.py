"""Compare a run with its baseline: what got worse or better, what is no longer compared, and what else differs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cgverify.common.records import Cell, CellResult, Finding, Run, Verdict
from cgverify.plan.cases import WHOLE
from cgverify.runs.baseline import StoredRun
from cgverify.runs.comparison.pairs import Pairing, TapPair, pair_cells, pair_findings
from cgverify.runs.comparison.reference import ReferenceChange, reference_changes
from cgverify.runs.differences import Difference, differences

TAP = ("model", "candidate", "dtype", "device", "rotary_dim", "attention", "case", "kind")
"""The fields of a cell that identify a tap, with step, tap and stage, over all layers and seeds."""

GROUPING_AXES = (
    *("model", "candidate", "device", "dtype", "rotary_dim", "attention", "case", "kind"),
    *("layer", "seed", "batch_size", "seq_len"),
)
"""The axes by which new cells are grouped, those that explain most first."""


@dataclass(frozen=True)
class Growth:
    """The greatest r of a tap over all layers and seeds in both runs, and where it is greatest in the new run."""

    cell: Cell
    finding: Finding
    before: float
    after: float

    @property
    def factor(self) -> float:
        return self.after / self.before if self.before else math.inf


@dataclass(frozen=True)
class Refusal:
    """A cell that one run compared, at least in part, and that was unsupported or an error in the other."""

    cell: Cell
    finding: Finding
    """Why it was not compared."""


@dataclass(frozen=True)
class Hook:
    """A hook that fires in cells of one run, but not in the same cells of the other."""

    candidate: str
    name: str
    cells: int


@dataclass(frozen=True)
class Group:
    """Cells that only one run has, under the value of an axis that the other run does not have."""

    axis: str
    value: str
    cells: int


@dataclass(frozen=True)
class Times:
    """The seconds of all cells in two runs of the same cells on equal machines.

    Cells of one batch share their time, so only the ratio of the two sums means something.
    """

    before: float
    after: float

    @property
    def factor(self) -> float | None:
        return self.after / self.before if self.before else None


@dataclass(frozen=True)
class Comparison:
    """What differs between a run and its baseline. Lists of cells and taps are in the order of the computation."""

    baseline: Run
    run: Run
    cells: int
    """The number of cells that both runs have."""
    taps: int
    """The number of taps that both runs compared."""
    worse: list[TapPair]
    better: list[TapPair]
    growths: list[Growth]
    """Every tap whose r grew, by any factor."""
    lost: list[Refusal]
    """Cells that are no longer compared."""
    regained: list[Refusal]
    """Cells that were not compared in the baseline, and are compared now."""
    stopped: list[Hook]
    """Hooks that fire only in the baseline."""
    started: list[Hook]
    """Hooks that fire only in the run."""
    appeared: list[CellResult]
    vanished: list[CellResult]
    appeared_groups: list[Group]
    vanished_groups: list[Group]
    differences: list[Difference]
    reference_changes: list[ReferenceChange]
    """Taps at which Hugging Face's own tensor is not the same in both runs."""
    times: Times | None

    def grown(self, factor: float) -> list[Growth]:
        """Return the taps whose r grew by at least a factor, the greatest growth first."""
        grown = [growth for growth in self.growths if growth.factor >= factor]
        return sorted(grown, key=lambda growth: growth.factor, reverse=True)


def compare(baseline: StoredRun, run: StoredRun) -> Comparison:
    """Compare a run with its baseline, tap by tap.

    Verdicts are ordered bitwise, ulp, bounded, missing, suspect, diverged. A failure at a tap that the baseline
    does not have, such as a candidate that raises now, is worse. Taps that are then missing are not counted as well.
    """
    pairing = pair_cells(baseline.results, run.results)
    matched = [(before, after, pair_findings(before, after)) for before, after in pairing.pairs]
    lost: list[Refusal] = []
    regained: list[Refusal] = []
    stopped: Counter[tuple[str, str]] = Counter()
    started: Counter[tuple[str, str]] = Counter()
    for before, after, pairs in matched:
        reversed_pairs = [TapPair(pair.cell, pair.after, pair.before) for pair in pairs]
        lost += _refusal(pairs)
        regained += _refusal(reversed_pairs)
        stopped.update((after.cell.candidate, hook) for hook in _silenced_hooks(before, after, pairs))
        started.update((after.cell.candidate, hook) for hook in _silenced_hooks(after, before, reversed_pairs))
    every_pair = [pair for _, _, pairs in matched for pair in pairs]
    return Comparison(
        baseline=baseline.run,
        run=run.run,
        cells=len(matched),
        taps=sum(_is_compared(pair.before) and _is_compared(pair.after) for pair in every_pair),
        worse=[pair for pair in every_pair if pair.direction > 0],
        better=[pair for pair in every_pair if pair.direction < 0],
        growths=_growths(every_pair),
        lost=lost,
        regained=regained,
        stopped=[Hook(*hook, cells) for hook, cells in stopped.items()],
        started=[Hook(*hook, cells) for hook, cells in started.items()],
        appeared=pairing.only_after,
        vanished=pairing.only_before,
        appeared_groups=_groups(pairing.only_after, baseline.results),
        vanished_groups=_groups(pairing.only_before, run.results),
        differences=differences(baseline.run, run.run),
        reference_changes=list(reference_changes(every_pair, baseline.folder, run.folder)),
        times=_times(baseline.run, run.run, pairing),
    )


def _is_compared(finding: Finding | None) -> bool:
    return finding is not None and finding.verdict.compares


def _refusal(pairs: Sequence[TapPair]) -> list[Refusal]:
    """Return the first reason why a cell that was compared is unsupported or an error now, if there is one."""
    if not any(_is_compared(pair.before) for pair in pairs):
        return []
    refusals = [
        Refusal(pair.cell, pair.after)
        for pair in pairs
        if pair.after is not None
        and not pair.after.verdict.compares
        and (pair.before is None or pair.before.verdict.compares)
    ]
    return refusals[:1]


def _silenced_hooks(before: CellResult, after: CellResult, pairs: Sequence[TapPair]) -> list[str]:
    """Return the hooks that fire in a cell of one run only, though the other ran the same forward without failing."""
    failed_now = any(pair.before is None and (pair.fails or not _is_compared(pair.after)) for pair in pairs)
    forwards = {finding.step for finding in after.findings}
    names: dict[str, None] = {}
    for pair in pairs:
        old, new = pair.before, pair.after
        if old is not None and new is not None and new.verdict is Verdict.MISSING is not old.verdict:
            names[new.tap] = None
    for pair in pairs:
        old, new = pair.before, pair.after
        if new is None and old is not None and old.step in forwards and not (old.verdict.fails or failed_now):
            names[old.tap] = None
    names |= dict.fromkeys(hook for hook in after.silent_hooks if hook not in before.silent_hooks)
    kind = after.cell.kind
    return [hook if kind in ("block", *WHOLE) else f"{kind}.{hook}" for hook in names if hook]


def _growths(pairs: Iterable[TapPair]) -> list[Growth]:
    greatest: dict[tuple[object, ...], Growth] = {}
    for pair in pairs:
        cell, old, new = pair.cell, pair.before, pair.after
        if old is None or new is None or old.r is None or new.r is None:
            continue
        key = (*(getattr(cell, name) for name in TAP), new.step, new.tap, new.stage)
        known = greatest.get(key)
        if known is None or new.r > known.after:
            known = Growth(cell, new, known.before if known else old.r, new.r)
        if old.r > known.before:
            known = Growth(known.cell, known.finding, old.r, known.after)
        greatest[key] = known
    return [growth for growth in greatest.values() if growth.after > growth.before]


def _groups(cells: Iterable[CellResult], others: Sequence[CellResult]) -> list[Group]:
    """Count cells under the first axis whose value is not found in another run.

    So a run with a new case is reported as `case text: 120 cells`, not in 120 lines. If every value is found there, the
    cells are counted under their component and case.
    """
    known = {axis: {getattr(result.cell, axis) for result in others} for axis in GROUPING_AXES}

    def novelty(cell: Cell) -> tuple[str, str]:
        for axis in GROUPING_AXES:
            if getattr(cell, axis) not in known[axis]:
                return axis, str(getattr(cell, axis))
        return "component", f"{cell.kind}, case {cell.case}"

    counted = Counter(novelty(result.cell) for result in cells)
    return [Group(axis, value, number) for (axis, value), number in counted.items()]


def _times(before: Run, after: Run, pairing: Pairing) -> Times | None:
    """Return the times of two runs if they have equal machines, numerics and cells."""
    if pairing.only_before or pairing.only_after:
        return None
    if any(before.environment.get(part) != after.environment.get(part) for part in ("machine", "numerics")):
        return None
    return Times(
        before=sum(result.seconds for result, _ in pairing.pairs),
        after=sum(result.seconds for _, result in pairing.pairs),
    )
