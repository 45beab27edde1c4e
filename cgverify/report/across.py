"""Two sides of one axis beside each other, in every format."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pandas as pd

from cgverify.common.records import Finding
from cgverify.report import as_json
from cgverify.report.document import document
from cgverify.report.figures import figure
from cgverify.report.frames import CELL
from cgverify.report.sections import Section, counted, on_screen
from cgverify.runs.comparison.across import Across, FirstDifference, first_differences
from cgverify.runs.comparison.pairs import TapPair

SIDES = ("first", "second")
FIGURES = ("verdict", "r", "error", "bits")
COLUMNS = [
    *CELL,
    *("step", "tap", "stage"),
    *(f"{figure}_{side}" for figure in FIGURES for side in SIDES),
    "ratio",
]


def across_frame(across: Across) -> pd.DataFrame:
    """One row per tap of a cell, columns `COLUMNS`: the cell is the second side's."""
    frame = pd.DataFrame([_row(pair) for pair in across.pairs], columns=COLUMNS)
    return frame.astype({"layer": "Int64", "rotary_dim": "string"})


def _row(pair: TapPair) -> dict[str, object]:
    row: dict[str, object] = {column: getattr(pair.cell, column) for column in CELL}
    row |= {name: getattr(pair.finding, name) for name in ("step", "tap", "stage")} | {"ratio": pair.ratio}
    for side, finding in zip(SIDES, (pair.before, pair.after), strict=True):
        row |= {
            f"verdict_{side}": finding.verdict.value if finding else "",
            f"r_{side}": finding.r if finding else None,
            f"error_{side}": finding.candidate_error if finding else None,
            f"bits_{side}": finding.bits if finding else None,
        }
    return row


def render(format: str, across: Across) -> str:
    """The two sides as text.

    Args:
        format: a key of `FORMATS`.
    """
    return FORMATS[format](across)


def _table(across: Across) -> str:
    return on_screen(sections(across))


def _markdown(across: Across) -> str:
    return document(f"{across.first} and {across.second}", sections(across))


def _csv(across: Across) -> str:
    text: str = across_frame(across).to_csv(index=False)
    return text


def _json(across: Across) -> str:
    described = {
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
        "taps": as_json.rows(across_frame(across)),
    }
    return json.dumps(described, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Across], str]] = {"table": _table, "json": _json, "csv": _csv, "markdown": _markdown}


def sections(across: Across) -> Iterator[Section]:
    """For each setting, first where the sides part, then the worst of each tap over its layers, cases and seeds."""
    unpaired = across.only_first + across.only_second
    lines = [f"{counted(unpaired, 'cell')} without a partner left out"] if unpaired else []
    yield Section(f"{across.axis}: {across.first} and {across.second}, {counted(across.cells, 'cell')} of each", lines)
    names = [Path(name).name if across.axis == "run" else name for name in (across.first, across.second)]
    for setting, pairs in across.by_setting().items():
        parted = [each for each in first_differences(pairs) if each.of_error or each.of_verdict]
        if not parted:
            yield Section(f"{setting}: no error and no verdict differs", tone="good")
            continue
        yield _where(setting, parted)
        rows = list(_worst(pairs))
        columns = [
            *("component", "tap", *(f"error {name}" for name in names), "ratio"),
            *("verdicts", *(f"bits {name}" for name in names)),
        ]
        yield Section("The worst of each tap (those that are exact on both sides left out)", columns=columns, rows=rows)


def _where(setting: str, parted: Iterable[FirstDifference]) -> Section:
    rows = [[each.kind, each.case, _stage(each.of_error), _stage_and_verdicts(each.of_verdict)] for each in parted]
    columns = ["component", "case", "first stage whose error differs", "first whose verdict differs"]
    return Section(f"{setting}: where the sides part", columns=columns, rows=rows)


def _stage(pair: TapPair | None) -> str:
    return "–" if pair is None else pair.finding.stage or pair.finding.message


def _stage_and_verdicts(pair: TapPair | None) -> str:
    return "–" if pair is None else f"{_stage(pair)}: {_verdicts(pair.before, pair.after)}"


def _worst(pairs: Iterable[TapPair]) -> Iterator[list[str]]:
    grouped: dict[tuple[str, str], list[TapPair]] = {}
    for pair in pairs:
        if pair.finding.tap:
            grouped.setdefault((pair.cell.kind, pair.finding.tap), []).append(pair)
    for (kind, tap), own in grouped.items():
        firsts = [pair.before for pair in own if pair.before]
        seconds = [pair.after for pair in own if pair.after]
        errors = [_most(finding.candidate_error for finding in side) for side in (firsts, seconds)]
        verdicts = _verdicts(*(max(side, key=_severity, default=None) for side in (firsts, seconds)))
        if errors == [0, 0] and "→" not in verdicts:
            continue
        bits = [_bits(finding.bits for finding in side) for side in (firsts, seconds)]
        yield [kind, tap, *map(figure, errors), _ratio(*errors), verdicts, *bits]


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _ratio(first: float | None, second: float | None) -> str:
    if first is None or second is None or first == second == 0:
        return "–"
    return figure(second / first if first else math.inf)


def _bits(values: Iterable[float | None]) -> str:
    fewest = min((value for value in values if value is not None), default=None)
    return "–" if fewest is None else "all" if math.isinf(fewest) else f"{fewest:.1f}"


def _verdicts(first: Finding | None, second: Finding | None) -> str:
    """`bounded`, or `bitwise → bounded` where the sides differ."""
    names = [finding.verdict.value if finding else "not found" for finding in (first, second)]
    return " → ".join(dict.fromkeys(names))


def _severity(finding: Finding) -> int:
    return finding.verdict.severity
