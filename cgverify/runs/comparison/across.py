"""Two slices of one run or two that differ in one axis: float32 and bfloat16, cpu and cuda, one bridge and another.

Cells that are equal in everything else were given the same probes, so their errors against the oracle can be divided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from cgverify.common.errors import UnknownNameError, UsageError
from cgverify.common.records import Cell, CellResult, Finding
from cgverify.runs.baseline import StoredRun
from cgverify.runs.comparison.pairs import pair_cells, pair_findings

AXES = ("device", "dtype", "rotary_dim", "candidate")
SETTING = ("candidate", "dtype", "device", "rotary_dim")


@dataclass(frozen=True)
class TapPair:
    """One tap on both sides. One is None where that side has no such finding."""

    cell: Cell
    """Of the second side."""
    first: Finding | None
    second: Finding | None

    @property
    def finding(self) -> Finding:
        found = self.second or self.first
        assert found is not None
        return found

    @property
    def ratio(self) -> float | None:
        """The second side's error against the oracle over the first's; None where one is unknown or both are exact."""
        ours, theirs = _error(self.first), _error(self.second)
        if ours is None or theirs is None or (ours == theirs == 0):
            return None
        return theirs / ours if ours else math.inf

    @property
    def verdict_differs(self) -> bool:
        return (self.first and self.first.verdict) != (self.second and self.second.verdict)

    @property
    def error_differs(self) -> bool:
        return _error(self.first) != _error(self.second)


@dataclass(frozen=True)
class FirstDifference:
    """Of one kind of component and case: where, in the order of the computation, the sides first differ."""

    kind: str
    case: str
    of_error: TapPair | None
    of_verdict: TapPair | None


@dataclass(frozen=True)
class Across:
    """Two sides of one axis, tap by tap in the order of the computation."""

    axis: str
    first: str
    second: str
    pairs: list[TapPair]
    cells: int
    only_first: int
    """Cells without a partner on the other side."""
    only_second: int

    def by_setting(self) -> dict[str, list[TapPair]]:
        """The pairs of each setting that both sides share: with the axis dtype, of each candidate, device and so on."""
        shared = [name for name in ("model", *SETTING) if name != self.axis]
        found: dict[str, list[TapPair]] = {}
        for pair in self.pairs:
            values = {name: str(getattr(pair.cell, name)) for name in shared}
            if "rotary_dim" in values:
                values["rotary_dim"] = f"rotary_dim {values['rotary_dim']}"
            found.setdefault(" · ".join(values.values()), []).append(pair)
        return found


def first_differences(pairs: Sequence[TapPair]) -> list[FirstDifference]:
    """Per kind of component and case, over layers and seeds, in the order of the computation."""
    found: dict[tuple[str, str], list[tuple[int, TapPair]]] = {}
    for _, own in groupby(pairs, key=lambda pair: pair.cell.id):
        for place, pair in enumerate(own):
            found.setdefault((pair.cell.kind, pair.cell.case), []).append((place, pair))
    return [
        FirstDifference(
            *key,
            of_error=_earliest(placed, lambda pair: pair.error_differs),
            of_verdict=_earliest(placed, lambda pair: pair.verdict_differs),
        )
        for key, placed in found.items()
    ]


def across(axis: str, values: tuple[str, str], sides: tuple[StoredRun, StoredRun]) -> Across:
    """Pair the cells of one value of an axis with those of another.

    Args:
        values: of the axis, on the first and on the second side. They may be the same if the runs are not.
        sides: the run of each side; twice the same for two slices of one run.

    Raises:
        UsageError: an axis or a value that is not there, or a run beside itself.
    """
    if axis not in AXES:
        raise UnknownNameError("axis", axis, (*AXES, "run"))
    if values[0] == values[1] and sides[0] is sides[1]:
        raise UsageError(f"--across {axis} {values[0]} {values[1]} puts a slice beside itself: name two values.")
    ours, theirs = (_slice(axis, value, side) for value, side in zip(values, sides, strict=True))
    return _paired(axis, values, ours, theirs)


def across_runs(names: tuple[str, str], sides: tuple[StoredRun, StoredRun]) -> Across:
    """Pair the equal cells of two runs: made with another number of threads, on another machine, or another day."""
    return _paired("run", names, sides[0].results, sides[1].results)


def _paired(axis: str, names: tuple[str, str], ours: Sequence[CellResult], theirs: Sequence[CellResult]) -> Across:
    pairing = pair_cells(ours, theirs, apart_from=() if axis == "run" else (axis,))
    pairs = [
        TapPair(after.cell, old, new) for before, after in pairing.pairs for old, new in pair_findings(before, after)
    ]
    return Across(
        axis,
        *names,
        pairs,
        len(pairing.pairs),
        only_first=len(pairing.only_before),
        only_second=len(pairing.only_after),
    )


def _slice(axis: str, value: str, side: StoredRun) -> list[CellResult]:
    known = dict.fromkeys(str(getattr(result.cell, axis)) for result in side.results)
    if value not in known:
        raise UnknownNameError(f"{axis} of the run", value, known)
    return [result for result in side.results if str(getattr(result.cell, axis)) == value]


def _error(finding: Finding | None) -> float | None:
    return None if finding is None else finding.candidate_error


def _earliest(placed: Sequence[tuple[int, TapPair]], differs: Callable[[TapPair], bool]) -> TapPair | None:
    """Among all cells, the pair that differs after the fewest taps."""
    found: Iterator[tuple[int, TapPair]] = ((place, pair) for place, pair in placed if differs(pair))
    return min(found, key=lambda each: each[0], default=(0, None))[1]
