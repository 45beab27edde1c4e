"""Which cells of two lists are the same cell, and which findings of two cells are the same tap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from cgverify.common.records import Cell, CellResult, Finding

CellKey = tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class Pairing:
    """Cells of two lists, side by side; each part in the order of its list."""

    pairs: list[tuple[CellResult, CellResult]]
    only_before: list[CellResult]
    only_after: list[CellResult]


def pair_cells(before: Iterable[CellResult], after: Iterable[CellResult], apart_from: Collection[str] = ()) -> Pairing:
    """Pair cells that are equal in every field apart from the given ones.

    Cells of the same weights are paired first. What is left over is paired whatever its weights, so that a checkpoint
    can be compared with its next revision.
    """
    old, new = list(before), list(after)
    exact = _matches(old, new, apart_from)
    taken = {id(result) for pair in exact for result in pair}
    rest = _matches(
        [result for result in old if id(result) not in taken],
        [result for result in new if id(result) not in taken],
        {*apart_from, "weights"},
    )
    partner = {id(theirs): (ours, theirs) for ours, theirs in (*exact, *rest)}
    taken = {id(result) for pair in partner.values() for result in pair}
    return Pairing(
        pairs=[partner[id(result)] for result in new if id(result) in partner],
        only_before=[result for result in old if id(result) not in taken],
        only_after=[result for result in new if id(result) not in taken],
    )


def pair_findings(before: CellResult, after: CellResult) -> list[tuple[Finding | None, Finding | None]]:
    """Findings of one cell by step, tap and stage: those of `after` in their order, then those of `before` alone."""
    old, new = _by_tap(before.findings), _by_tap(after.findings)
    gone = [(finding, None) for key, finding in old.items() if key not in new]
    return [*((old.get(key), finding) for key, finding in new.items()), *gone]


def _matches(
    before: Sequence[CellResult], after: Sequence[CellResult], apart_from: Collection[str]
) -> list[tuple[CellResult, CellResult]]:
    old = {_key(result.cell, apart_from): result for result in before}
    new = {_key(result.cell, apart_from): result for result in after}
    return [(old[key], result) for key, result in new.items() if key in old]


def _key(cell: Cell, apart_from: Collection[str]) -> CellKey:
    return tuple((name, getattr(cell, name)) for name in Cell.model_fields if name not in apart_from)


def _by_tap(findings: Sequence[Finding]) -> dict[tuple[str, str, str, int], Finding]:
    """A tap may be found wrong twice in one stage (`conduct`): the second is another finding than the first."""
    seen: Counter[tuple[str, str, str]] = Counter()
    keyed = {}
    for finding in findings:
        key = (finding.step, finding.tap, finding.stage)
        keyed[(*key, seen[key])] = finding
        seen[key] += 1
    return keyed
