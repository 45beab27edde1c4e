"""Two sides of one axis beside each other, in every format."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator

import pandas as pd

from cgverify.comparison.across import Across, FirstDifference, TapPair
from cgverify.records import Finding, Verdict
from cgverify.report.frames import CELL
from cgverify.report.markdown import document
from cgverify.report.sections import Section, counted, figure, on_screen

SIDES = ("first", "second")
FIGURES = ("verdict", "r", "error", "bits")
COLUMNS = [
    *(column for column in CELL),
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
    for side, finding in zip(SIDES, (pair.first, pair.second), strict=True):
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
    rows = [
        {name: str(value) if isinstance(value, float) and not math.isfinite(value) else value for name, value in row}
        for row in (_row(pair).items() for pair in across.pairs)
    ]
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
            for each in across.first_differences()
        ],
        "taps": rows,
    }
    return json.dumps(described, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Across], str]] = {"table": _table, "json": _json, "csv": _csv, "markdown": _markdown}


def sections(across: Across) -> Iterator[Section]:
    """First where the sides part, then every tap with the worst over its layers, cases and seeds."""
    unpaired = across.only_first + across.only_second
    lines = [f"{counted(unpaired, 'cell')} without a partner left out"] if unpaired else []
    yield Section(f"{across.axis}: {across.first} and {across.second}, {counted(across.cells, 'cell')} of each", lines)
    rows = [
        [each.kind, each.case, _place(each.of_error), _place(each.of_verdict, with_verdicts=across)]
        for each in _told(across.first_differences())
    ]
    if not rows:
        yield Section("No error and no verdict differs", tone="good")
        return
    columns = ["component", "case", "first stage whose error differs", "first whose verdict differs"]
    yield Section("Where the sides part", columns=columns, rows=rows)
    headings = [f"{name} {side}" for name in ("error", "verdict", "bits") for side in (across.first, across.second)]
    columns = ["component", "tap", *headings[:2], "ratio", *headings[2:]]
    yield Section("The worst of each tap", columns=columns, rows=[*_worst(across.pairs)])


def _told(found: Iterable[FirstDifference]) -> list[FirstDifference]:
    return [each for each in found if each.of_error or each.of_verdict]


def _place(pair: TapPair | None, with_verdicts: Across | None = None) -> str:
    if pair is None:
        return "–"
    stage = pair.finding.stage or pair.finding.message
    if with_verdicts is None:
        return stage
    return f"{stage}: {_verdict(pair.first)}, {_verdict(pair.second)}"


def _worst(pairs: Iterable[TapPair]) -> Iterator[list[str]]:
    grouped: dict[tuple[str, str], list[TapPair]] = {}
    for pair in pairs:
        if pair.finding.tap:
            grouped.setdefault((pair.cell.kind, f"{pair.finding.tap} ({pair.finding.stage})"), []).append(pair)
    for (kind, tap), own in grouped.items():
        firsts, seconds = (
            [side for side in sides if side] for sides in zip(*((p.first, p.second) for p in own), strict=True)
        )
        errors = [_most(finding.candidate_error for finding in side) for side in (firsts, seconds)]
        yield [
            *(kind, tap, *map(figure, errors), _ratio(*errors)),
            *(_verdict(max(side, key=lambda f: f.verdict.severity, default=None)) for side in (firsts, seconds)),
            *(_bits(finding.bits for finding in side) for side in (firsts, seconds)),
        ]


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _ratio(first: float | None, second: float | None) -> str:
    if first is None or second is None or first == second == 0:
        return "–"
    return figure(second / first if first else math.inf)


def _bits(values: Iterable[float | None]) -> str:
    fewest = min((value for value in values if value is not None), default=None)
    return "–" if fewest is None else "all" if math.isinf(fewest) else f"{fewest:.1f}"


def _verdict(finding: Finding | None) -> str:
    return "–" if finding is None else Verdict(finding.verdict).value
