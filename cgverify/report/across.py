"""The comparison of two sides of one axis as a report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from cgverify.common.records import Finding
from cgverify.report.folds import verdict_names
from cgverify.report.frames import CELL, TYPES, cell_columns
from cgverify.report.numbers import bits, counted, figure
from cgverify.report.render import json_rows
from cgverify.report.sections import Report, Section
from cgverify.runs.comparison.across import Across, FirstDifference, first_differences
from cgverify.runs.comparison.pairs import TapPair, error_ratio

SIDES = ("first", "second")
COLUMNS = [
    *(*CELL, "step", "tap", "stage"),
    *(f"{name}_{side}" for name in ("verdict", "r", "error", "bits") for side in SIDES),
    "ratio",
]


def across_report(across: Across) -> Report:
    return Report(
        title=f"{across.first} and {across.second}",
        sections=lambda: _sections(across),
        frame=lambda: across_frame(across),
        value=lambda: _value(across),
    )


def _sections(across: Across) -> Iterator[Section]:
    """Yield for each setting where the sides begin to differ, then the worst of each tap over all its cells."""
    unpaired = across.only_first + across.only_second
    lines = [f"{counted(unpaired, 'cell')} without a partner left out"] if unpaired else []
    yield Section(f"{across.axis}: {across.first} and {across.second}, {counted(across.cells, 'cell')} of each", lines)
    first, second = (Path(name).name if across.axis == "run" else name for name in (across.first, across.second))
    columns = ["component", "tap", f"error {first}", f"error {second}", "ratio", "verdicts"]
    columns += [f"bits {first}", f"bits {second}"]
    for setting, pairs in across.by_setting().items():
        parted = [each for each in first_differences(pairs) if each.of_error or each.of_verdict]
        if not parted:
            yield Section(f"{setting}: no error and no verdict differs", tone="good")
            continue
        yield _where(setting, parted)
        title = "The worst of each tap (without taps that are exact on both sides)"
        yield Section(title, columns=columns, rows=list(_worst(pairs)))


def _where(setting: str, parted: Iterable[FirstDifference]) -> Section:
    rows = [[each.kind, each.case, _stage(each.of_error), _stage_and_verdicts(each.of_verdict)] for each in parted]
    columns = ["component", "case", "first stage whose error differs", "first whose verdict differs"]
    return Section(f"{setting}: where the sides part", columns=columns, rows=rows)


def _stage(pair: TapPair | None) -> str:
    return "–" if pair is None else pair.finding.stage or pair.finding.message


def _stage_and_verdicts(pair: TapPair | None) -> str:
    return "–" if pair is None else f"{_stage(pair)}: {_verdicts(pair)}"


def _verdicts(pair: TapPair) -> str:
    """Return `bounded`, or `bitwise → bounded` if the sides differ."""
    return " → ".join(dict.fromkeys(verdict_names(pair)))


def _worst(pairs: Iterable[TapPair]) -> Iterator[list[str]]:
    """Yield a row for each kind of component and tap, unless both sides are exact."""
    grouped: dict[tuple[str, str], list[TapPair]] = {}
    for pair in pairs:
        if pair.finding.tap:
            grouped.setdefault((pair.cell.kind, pair.finding.tap), []).append(pair)
    for (kind, tap), own in grouped.items():
        sides = [pair.before for pair in own if pair.before], [pair.after for pair in own if pair.after]
        first, second = (_greatest_error(side) for side in sides)
        before, after = (max(side, key=lambda finding: finding.verdict.severity, default=None) for side in sides)
        verdicts = _verdicts(TapPair(own[0].cell, before, after))
        if first == second == 0 and "→" not in verdicts:
            continue
        ratio = figure(error_ratio(first, second))
        yield [kind, tap, figure(first), figure(second), ratio, verdicts, *(bits(_fewest_bits(side)) for side in sides)]


def _greatest_error(findings: Iterable[Finding]) -> float | None:
    return max((one.candidate_error for one in findings if one.candidate_error is not None), default=None)


def _fewest_bits(findings: Iterable[Finding]) -> float | None:
    return min((one.bits for one in findings if one.bits is not None), default=None)


def across_frame(across: Across) -> pd.DataFrame:
    """Return one row per tap of a cell, columns `COLUMNS`. The cell is the second side's."""
    return pd.DataFrame([_row(pair) for pair in across.pairs], columns=COLUMNS).astype(TYPES)


def _row(pair: TapPair) -> dict[str, object]:
    row = cell_columns(pair.cell) | {name: getattr(pair.finding, name) for name in ("step", "tap", "stage")}
    for side, finding in zip(SIDES, (pair.before, pair.after), strict=True):
        row |= {
            f"verdict_{side}": finding.verdict.value if finding else "",
            f"r_{side}": finding.r if finding else None,
            f"error_{side}": finding.candidate_error if finding else None,
            f"bits_{side}": finding.bits if finding else None,
        }
    return row | {"ratio": pair.ratio}


def _value(across: Across) -> dict[str, object]:
    return {
        "axis": across.axis,
        "first": across.first,
        "second": across.second,
        "cells": across.cells,
        "only_first": across.only_first,
        "only_second": across.only_second,
        "first_differences": [
            {
                "kind": each.kind,
                "case": each.case,
                "error": each.of_error.finding.stage if each.of_error else None,
                "verdict": each.of_verdict.finding.stage if each.of_verdict else None,
            }
            for each in first_differences(across.pairs)
        ],
        "taps": json_rows(across_frame(across)),
    }
