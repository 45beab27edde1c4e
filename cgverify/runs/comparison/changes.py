"""A run beside its baseline: what got worse, what got better, what is no longer there, and what was different."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cgverify.common.records import Cell, CellResult, Finding, Run, Verdict
from cgverify.plan.cells import WHOLE
from cgverify.runs.baseline import StoredRun
from cgverify.runs.comparison.pairs import Pairing, pair_cells, pair_findings

TAP = ("model", "candidate", "dtype", "device", "rotary_dim", "case", "kind")
"""What, with step, tap and stage, makes findings of several layers and seeds findings of one tap."""

NOVELTIES = (
    *("model", "candidate", "device", "dtype", "rotary_dim", "case", "kind"),
    *("layer", "seed", "batch_size", "seq_len"),
)
"""Axes of a cell, from the one that tells most of why a cell is new to the one that tells least."""


@dataclass(frozen=True)
class CellChange:
    """A tap of a cell whose verdict is another than before. One side is None where that run has no such finding."""

    cell: Cell
    before: Finding | None
    after: Finding | None

    @property
    def finding(self) -> Finding:
        """The finding of now, or of then where there is none now."""
        found = self.after or self.before
        assert found is not None
        return found

    @property
    def fails(self) -> bool:
        return self.after is not None and self.after.verdict.fails


@dataclass(frozen=True)
class Growth:
    """The greatest r of a tap over all layers and seeds, before and now; with the cell where it is greatest now."""

    cell: Cell
    finding: Finding
    before: float
    after: float

    @property
    def factor(self) -> float:
        return self.after / self.before if self.before else math.inf


@dataclass(frozen=True)
class Refusal:
    """A cell that one of the runs compared, wholly or in part, and that was unsupported or an error in the other."""

    cell: Cell
    finding: Finding
    """Why it was not compared."""


@dataclass(frozen=True)
class Hook:
    """A hook that fires in cells of one run and not in the same cells of the other."""

    candidate: str
    name: str
    cells: int


@dataclass(frozen=True)
class Group:
    """Cells that only one of the runs has, under the value that the other run does not know."""

    axis: str
    value: str
    cells: int


@dataclass(frozen=True)
class Difference:
    """A version, flag or setting that is not the same in both runs."""

    part: str
    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Times:
    """Seconds of all cells, where runs of the same cells were made on equal machines.

    Cells that share a view of the weights overlap in time, and the more of them there are the longer each takes: only
    the two figures beside each other say something.
    """

    before: float
    after: float

    @property
    def factor(self) -> float | None:
        return self.after / self.before if self.before else None


@dataclass(frozen=True)
class Comparison:
    """What differs between a baseline and a run. Lists stand in the order of the computation."""

    baseline: Run
    run: Run
    cells: int
    """Cells that both runs have."""
    taps: int
    """Taps that were compared in both."""
    worse: list[CellChange]
    better: list[CellChange]
    growths: list[Growth]
    """Every tap whose r grew, by whatever factor."""
    lost: list[Refusal]
    """Cells that are no longer compared."""
    regained: list[Refusal]
    """Cells that were not compared in the baseline, and are now."""
    stopped: list[Hook]
    """They fired in the baseline."""
    started: list[Hook]
    """They did not."""
    appeared: list[CellResult]
    vanished: list[CellResult]
    pairing: Pairing
    differences: list[Difference]
    times: Times | None

    def grown(self, factor: float) -> list[Growth]:
        """Taps whose r grew by at least a factor, the most first."""
        grown = [growth for growth in self.growths if growth.factor >= factor]
        return sorted(grown, key=lambda growth: growth.factor, reverse=True)

    @cached_property
    def appeared_groups(self) -> list[Group]:
        return groups(self.appeared, [before for before, _ in self.pairing.pairs] + self.vanished)

    @cached_property
    def vanished_groups(self) -> list[Group]:
        return groups(self.vanished, [after for _, after in self.pairing.pairs] + self.appeared)


def compare(baseline: StoredRun, run: StoredRun) -> Comparison:
    """Compare a run with its baseline, tap by tap.

    Verdicts are ordered bitwise, ulp, bounded, missing, diverged. A finding that fails and that the baseline does not
    have (a candidate that raises now, say) is worse; the taps that are missing behind it are its consequence.
    """
    pairing = pair_cells(baseline.results, run.results)
    worse: list[CellChange] = []
    better: list[CellChange] = []
    lost: list[Refusal] = []
    regained: list[Refusal] = []
    stopped: Counter[tuple[str, str]] = Counter()
    started: Counter[tuple[str, str]] = Counter()
    taps = 0
    for before, after in pairing.pairs:
        cell, pairs = after.cell, pair_findings(before, after)
        taps += sum(old is not None and new is not None and _both_compare(old, new) for old, new in pairs)
        changes = [CellChange(cell, old, new) for old, new in pairs]
        worse += [change for change in changes if _direction(change) > 0]
        better += [change for change in changes if _direction(change) < 0]
        lost += _refused(cell, pairs)
        regained += _refused(cell, [(new, old) for old, new in pairs])
        stopped.update((cell.candidate, hook) for hook in _gone_silent(before, after, pairs))
        started.update(
            (cell.candidate, hook) for hook in _gone_silent(after, before, [(new, old) for old, new in pairs])
        )
    return Comparison(
        baseline=baseline.run,
        run=run.run,
        cells=len(pairing.pairs),
        taps=taps,
        worse=worse,
        better=better,
        growths=_growths(pairing.pairs),
        lost=lost,
        regained=regained,
        stopped=[Hook(*hook, cells) for hook, cells in stopped.items()],
        started=[Hook(*hook, cells) for hook, cells in started.items()],
        appeared=pairing.only_after,
        vanished=pairing.only_before,
        pairing=pairing,
        differences=differences(baseline.run, run.run),
        times=_times(baseline.run, run.run, pairing),
    )


def _both_compare(before: Finding, after: Finding) -> bool:
    return before.verdict.compares and after.verdict.compares


def _direction(change: CellChange) -> int:
    """1 for worse, -1 for better, 0 for neither."""
    before, after = change.before, change.after
    if before is None or after is None:
        return (after is not None and after.verdict.fails) - (before is not None and before.verdict.fails)
    if not _both_compare(before, after):
        return 0
    return (after.verdict.severity > before.verdict.severity) - (after.verdict.severity < before.verdict.severity)


def _refused(cell: Cell, pairs: Sequence[tuple[Finding | None, Finding | None]]) -> list[Refusal]:
    """At most one: what now stands where something was compared, that it is unsupported or could not be run."""
    if not any(before is not None and before.verdict.compares for before, _ in pairs):
        return []
    refusals = [
        Refusal(cell, after)
        for before, after in pairs
        if after is not None and not after.verdict.compares and (before is None or before.verdict.compares)
    ]
    return refusals[:1]


def _gone_silent(
    before: CellResult, after: CellResult, pairs: Sequence[tuple[Finding | None, Finding | None]]
) -> list[str]:
    """Hooks that fire in one run's cell and not in the other's, which had the same forward and did not fail in it."""
    explained = any(
        old is None and new is not None and (new.verdict.fails or not new.verdict.compares) for old, new in pairs
    )
    missing = [
        new.tap
        for old, new in pairs
        if old is not None and new is not None
        if new.verdict is Verdict.MISSING is not old.verdict
    ]
    forwards = {finding.step for finding in after.findings}
    gone = [
        old.tap
        for old, new in pairs
        if new is None and old is not None and old.step in forwards and not old.verdict.fails
    ]
    silent = [hook for hook in after.silent_hooks if hook not in before.silent_hooks]
    kind = after.cell.kind
    names = dict.fromkeys([*missing, *(() if explained else gone), *silent])
    return [hook if kind in ("block", *WHOLE) else f"{kind}.{hook}" for hook in names if hook]


def _growths(pairs: Iterable[tuple[CellResult, CellResult]]) -> list[Growth]:
    greatest: dict[tuple[object, ...], Growth] = {}
    for before, after in pairs:
        tap_of = tuple(getattr(after.cell, name) for name in TAP)
        for old, new in pair_findings(before, after):
            if old is None or new is None or old.r is None or new.r is None:
                continue
            key = (*tap_of, new.step, new.tap, new.stage)
            known = greatest.get(key)
            if known is None or new.r > known.after:
                known = Growth(after.cell, new, known.before if known else old.r, new.r)
            if old.r > known.before:
                known = Growth(known.cell, known.finding, old.r, known.after)
            greatest[key] = known
    return [growth for growth in greatest.values() if growth.after > growth.before]


def groups(cells: Iterable[CellResult], others: Iterable[CellResult]) -> list[Group]:
    """Cells that another run does not have, counted under the first axis whose value it has nowhere.

    So a run that gained a case says `case text: 120 cells` and not 120 lines.
    """
    known: dict[str, set[object]] = {axis: set() for axis in NOVELTIES}
    for result in others:
        for axis in NOVELTIES:
            known[axis].add(getattr(result.cell, axis))
    counted = Counter(_novelty(result.cell, known) for result in cells)
    return [Group(axis, value, number) for (axis, value), number in counted.items()]


def _novelty(cell: Cell, known: Mapping[str, set[object]]) -> tuple[str, str]:
    for axis in NOVELTIES:
        if getattr(cell, axis) not in known[axis]:
            return axis, str(getattr(cell, axis))
    return "component", f"{cell.kind}, case {cell.case}"


def differences(before: Run, after: Run) -> list[Difference]:
    """Versions, numerics flags, machine, weights, sources of candidates and settings that are not equal."""
    old, new = _described(before), _described(after)
    return [
        Difference(*key, before=str(old.get(key, "–")), after=str(new.get(key, "–")))
        for key in dict.fromkeys((*new, *old))
        if old.get(key, "–") != new.get(key, "–")
    ]


def _described(run: Run) -> dict[tuple[str, str], object]:
    stored: dict[str, Any] = run.model_dump(mode="json")
    sources = stored["settings"].pop("candidate_sources", {})
    parts: dict[str, Mapping[str, object]] = {
        **{part: stored["environment"].get(part, {}) for part in ("versions", "numerics", "machine")},
        "weights": {"origin": run.weights_origin, "digest": run.weights_digest},
        "source": sources,
        "settings": stored["settings"],
    }
    return {(part, name): value for part, values in parts.items() for name, value in values.items()}


def _times(before: Run, after: Run, pairing: Pairing) -> Times | None:
    """Times say something only where machine, threads, flags and cells are the same."""
    if pairing.only_before or pairing.only_after:
        return None
    for part in ("machine", "numerics"):
        if before.environment.get(part) != after.environment.get(part):
            return None
    return Times(
        before=sum(result.seconds for result, _ in pairing.pairs),
        after=sum(result.seconds for _, result in pairing.pairs),
    )
