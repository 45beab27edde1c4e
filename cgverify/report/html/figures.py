"""What the charts of a run show: figures gathered from its findings, with the same as a table for who cannot see them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cgverify.records import CellResult
from cgverify.report.html.chart import Pair, Series, Style, line_chart, pair_chart, styles
from cgverify.report.html.templating import figure
from cgverify.report.html.worst import Axis, every_finding, setting_of, tap_name

BOUND = 1.0


@dataclass(frozen=True)
class Figure:
    """A chart, its key, and its figures as a table."""

    title: str
    chart: Markup
    key: tuple[Style, ...]
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def difference_by_layer(results: Iterable[CellResult], axes: Sequence[Axis]) -> Figure | None:
    """Greatest |Δ| to the reference in each layer. None where no layer has a difference."""
    series = _greatest_by_layer(results, axes, "max_abs")
    if not any(y > 0 for one in series for _, y in one.points):
        return None
    return _by_layer("Greatest |Δ| to Hugging Face in each layer", series, limit=None)


def ratio_by_layer(results: Iterable[CellResult], axes: Sequence[Axis]) -> Figure | None:
    """Greatest r in each layer, beside the bound. None where there is no layer."""
    series = _greatest_by_layer(results, axes, "r")
    return _by_layer("Greatest r in each layer", series, limit=BOUND) if series else None


def errors_by_tap(results: Sequence[CellResult], axes: Sequence[Axis]) -> list[Figure]:
    """Greatest error of candidate and reference against the oracle at each tap: a chart per candidate."""
    apart = tuple(axis for axis in axes if axis.name not in ("case", "dtype"))
    greatest: dict[str, dict[tuple[str, str], tuple[float, float]]] = {}
    for cell, finding in every_finding(results):
        if finding.candidate_error is None or finding.reference_error is None:
            continue
        pairs = greatest.setdefault(" · ".join(setting_of(cell, apart)), {})
        key = (tap_name(cell, finding), cell.dtype)
        before = pairs.get(key, (0.0, 0.0))
        pairs[key] = (max(before[0], finding.candidate_error), max(before[1], finding.reference_error))
    return [figure for name, pairs in greatest.items() if (figure := _errors(name, pairs)) is not None]


def _errors(name: str, errors: dict[tuple[str, str], tuple[float, float]]) -> Figure | None:
    inexact = {tap for (tap, _), both in errors.items() if max(both) > 0}
    exact = list(dict.fromkeys(tap for tap, _ in errors if tap not in inexact))
    pairs = [Pair(tap, dtype, *both) for (tap, dtype), both in errors.items() if tap in inexact]
    if not pairs:
        return None
    pairs.sort(key=lambda pair: [tap for tap, _ in errors].index(pair.row))
    return Figure(
        title=name,
        chart=pair_chart(pairs, title=f"Error against the oracle by tap {name}", x_label="greatest |error|, all layers"),
        key=tuple(styles(list(dict.fromkeys(pair.series for pair in pairs))).values()),
        headings=("tap", "dtype", "candidate", "Hugging Face", "ratio"),
        rows=tuple(
            (pair.row, pair.series, figure(pair.candidate), figure(pair.reference), _ratio(pair)) for pair in pairs
        ),
        note=f"Exact on both sides in every dtype, and left out: {', '.join(exact)}." if exact else "",
    )


def _ratio(pair: Pair) -> str:
    if pair.candidate == pair.reference:
        return "1"
    return figure(pair.candidate / pair.reference if pair.reference else math.inf)


def _greatest_by_layer(results: Iterable[CellResult], axes: Sequence[Axis], column: str) -> list[Series]:
    apart = tuple(axis for axis in axes if axis.name != "case")
    greatest: dict[str, dict[int, float]] = {}
    for cell, finding in every_finding(results):
        found = getattr(finding, column)
        if cell.layer is not None and found is not None:
            of = greatest.setdefault(" · ".join(setting_of(cell, apart)), {})
            of[cell.layer] = max(of.get(cell.layer, 0.0), found)
    return [Series(name, tuple(sorted(of.items()))) for name, of in greatest.items()]


def _by_layer(title: str, series: Sequence[Series], limit: float | None) -> Figure:
    layers = sorted({layer for one in series for layer, _ in one.points})
    of = {one.name: dict(one.points) for one in series}
    return Figure(
        title=title,
        chart=line_chart(series, title=title, x_label="layer", limit=limit),
        key=tuple(styles([one.name for one in series]).values()),
        headings=("layer", *of),
        rows=tuple((str(layer), *(figure(points.get(layer)) for points in of.values())) for layer in layers),
    )
