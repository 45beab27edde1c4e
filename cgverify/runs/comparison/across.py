"""Compare two sides that differ in one axis: float32 and bfloat16, cpu and cuda, two bridges, or two runs.

Cells that are equal in all other axes had the same inputs, so their errors against the oracle can be divided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from cgverify.common.errors import UnknownNameError, UsageError
from cgverify.common.records import SETTING, CellResult, setting_words
from cgverify.runs.baseline import StoredRun
from cgverify.runs.comparison.pairs import TapPair, pair_cells, pair_findings

AXES = ("device", "dtype", "rotary_dim", "attention", "candidate")


@dataclass(frozen=True)
class FirstDifference:
    """The earliest taps, in the order of the computation, at which the sides differ, for one kind and case."""

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
    """The number of cells that both sides have."""
    only_first: int
    """The number of cells that only the first side has."""
    only_second: int

    def by_setting(self) -> dict[str, list[TapPair]]:
        """Return the pairs by the values of all axes of `SETTING` but the compared one."""
        found: dict[str, list[TapPair]] = {}
        for pair in self.pairs:
            words = setting_words({field: getattr(pair.cell, field) for field in SETTING if field != self.axis})
            found.setdefault(" · ".join(words), []).append(pair)
        return found


def first_differences(pairs: Sequence[TapPair]) -> list[FirstDifference]:
    """Return the first differences of each kind and case, over all layers and seeds."""
    found: dict[tuple[str, str], list[tuple[int, TapPair]]] = {}
    for _, of_cell in groupby(pairs, key=lambda pair: pair.cell.id):
        for place, pair in enumerate(of_cell):
            found.setdefault((pair.cell.kind, pair.cell.case), []).append((place, pair))

    def earliest(placed: Sequence[tuple[int, TapPair]], differs: Callable[[TapPair], bool]) -> TapPair | None:
        different = [(place, pair) for place, pair in placed if differs(pair)]
        return min(different, key=lambda one: one[0])[1] if different else None

    return [
        FirstDifference(
            kind,
            case,
            of_error=earliest(placed, lambda pair: pair.errors[0] != pair.errors[1]),
            of_verdict=earliest(placed, lambda pair: pair.verdict_differs),
        )
        for (kind, case), placed in found.items()
    ]


def across(axis: str, values: tuple[str, str], sides: tuple[StoredRun, StoredRun]) -> Across:
    """Pair the cells of one value of an axis with those of another.

    Args:
        values: the values on the first and on the second side. They may be equal if the runs are not the same.
        sides: the run of each side; twice the same run for two of its slices.

    Raises:
        UsageError: the axis or a value is unknown, or a slice is compared with itself.
    """
    if axis not in AXES:
        raise UnknownNameError("axis", axis, (*AXES, "run"))
    if values[0] == values[1] and sides[0] is sides[1]:
        raise UsageError(f"--across {axis} {values[0]} {values[1]} compares a slice with itself: name two values.")
    first, second = (_slice(axis, value, side) for value, side in zip(values, sides, strict=True))
    return _paired(axis, values, first, second)


def across_runs(names: tuple[str, str], sides: tuple[StoredRun, StoredRun]) -> Across:
    """Pair the equal cells of two runs, for example with another number of threads or on another machine."""
    return _paired("run", names, sides[0].results, sides[1].results)


def _slice(axis: str, value: str, side: StoredRun) -> list[CellResult]:
    known = dict.fromkeys(str(getattr(result.cell, axis)) for result in side.results)
    if value not in known:
        raise UnknownNameError(f"{axis} of the run", value, known)
    return [result for result in side.results if str(getattr(result.cell, axis)) == value]


def _paired(axis: str, names: tuple[str, str], first: Sequence[CellResult], second: Sequence[CellResult]) -> Across:
    pairing = pair_cells(first, second, ignored=() if axis == "run" else (axis,))
    return Across(
        axis,
        *names,
        pairs=[pair for cells in pairing.pairs for pair in pair_findings(*cells)],
        cells=len(pairing.pairs),
        only_first=len(pairing.only_before),
        only_second=len(pairing.only_after),
    )
