"""The charts of a run, each with its numbers as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cgverify.common.records import CellResult
from cgverify.report.html.chart import ErrorPair, Series, Style, line_chart, pair_chart, styles
from cgverify.report.html.heat_map import Axis, axis_values, tap_name
from cgverify.report.numbers import grouped_figure
from cgverify.report.outcome import every_finding

BOUND = 1.0


@dataclass(frozen=True)
class ChartWithTable:
    """A chart, its key, and its numbers as a table for readers who cannot see the chart."""

    title: str
    chart: Markup
    key: tuple[Style, ...]
    headings: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    note: str = ""


def difference_by_layer(results: Iterable[CellResult], axes: Sequence[Axis]) -> ChartWithTable | None:
    """Return the greatest |Δ| from the reference in each layer; None if no layer has a difference."""
    series = greatest_by_layer(results, axes, "max_abs")
    if not any(y > 0 for one in series for _, y in one.points):
        return None
    return _by_layer("Greatest |Δ| to Hugging Face in each layer", series, limit=None)


def ratio_by_layer(results: Iterable[CellResult], axes: Sequence[Axis]) -> ChartWithTable | None:
    """Return the greatest r in each layer, with the bound; None if there is no layer."""
    series = greatest_by_layer(results, axes, "r")
    return _by_layer("Greatest r in each layer", series, limit=BOUND) if series else None


def greatest_by_layer(results: Iterable[CellResult], axes: Sequence[Axis], column: str) -> list[Series]:
    """Return the greatest value of a column of the findings in each layer, for each combination of the other axes."""
    by_series = [axis for axis in axes if axis.name != "case"]
    greatest: dict[str, dict[int, float]] = {}
    for cell, finding in every_finding(results):
        value = getattr(finding, column)
        if cell.layer is not None and value is not None:
            by_layer = greatest.setdefault(" · ".join(axis_values(cell, by_series)), {})
            by_layer[cell.layer] = max(by_layer.get(cell.layer, 0.0), value)
    return [Series(name, tuple(sorted(by_layer.items()))) for name, by_layer in greatest.items()]


def _by_layer(title: str, series: Sequence[Series], limit: float | None) -> ChartWithTable:
    layers = sorted({layer for one in series for layer, _ in one.points})
    by_series = {one.name: dict(one.points) for one in series}
    return ChartWithTable(
        title=title,
        chart=line_chart(series, title=title, x_label="layer", limit=limit),
        key=tuple(styles([one.name for one in series]).values()),
        headings=("layer", *by_series),
        rows=tuple(
            (str(layer), *(grouped_figure(points.get(layer)) for points in by_series.values())) for layer in layers
        ),
    )


Errors = tuple[float, ...]
"""The greatest r, r of the reference, error and error of the reference at one tap in one dtype."""


def errors_by_tap(results: Sequence[CellResult], axes: Sequence[Axis]) -> list[ChartWithTable]:
    """Return the errors of candidate and reference against the oracle at each tap, as a chart per candidate.

    The charts are in units of the bound, so that all taps and dtypes have one scale. The tables also have the errors.
    """
    greatest = greatest_errors(results, axes)
    dtypes = next(axis.values for axis in axes if axis.name == "dtype")
    charts = [_errors(name, errors, dtypes) for name, errors in greatest.items()]
    return [chart for chart in charts if chart is not None]


def greatest_errors(results: Iterable[CellResult], axes: Sequence[Axis]) -> dict[str, dict[tuple[str, str], Errors]]:
    """Return the greatest errors at each tap in each dtype, for each combination of the other axes but the case."""
    by_chart = [axis for axis in axes if axis.name not in ("case", "dtype")]
    greatest: dict[str, dict[tuple[str, str], Errors]] = {}
    for cell, finding in every_finding(results):
        if finding.r is not None and finding.reference_r is not None:
            found = finding.r, finding.reference_r, finding.candidate_error or 0.0, finding.reference_error or 0.0
            errors = greatest.setdefault(" · ".join(axis_values(cell, by_chart)), {})
            key = (tap_name(cell, finding), cell.dtype)
            errors[key] = tuple(map(max, errors.get(key, found), found))
    return greatest


def _errors(name: str, errors: dict[tuple[str, str], Errors], dtypes: Sequence[str]) -> ChartWithTable | None:
    taps = dict.fromkeys(tap for tap, _ in errors)
    inexact = {tap for (tap, _), own in errors.items() if max(own[:2]) > 0}
    drawn = [
        (tap, dtype, errors[tap, dtype])
        for tap in taps
        for dtype in dtypes
        if tap in inexact and (tap, dtype) in errors
    ]
    if not drawn:
        return None
    exact = ", ".join(tap for tap in taps if tap not in inexact)
    return ChartWithTable(
        title=f"Error by tap, {name}" if name else "Error by tap",
        chart=pair_chart(
            [ErrorPair(tap, dtype, *own[:2]) for tap, dtype, own in drawn],
            title=f"Error of both sides against the oracle by tap {name}".rstrip(),
            x_label="greatest |error| over its bound, all layers and cases",
            limit=BOUND,
        ),
        key=tuple(styles(list(dict.fromkeys(dtype for _, dtype, _ in drawn))).values()),
        headings=("tap", "dtype", "r", "r of Hugging Face", "|error|", "|error| of Hugging Face"),
        rows=tuple((tap, dtype, *map(grouped_figure, own)) for tap, dtype, own in drawn),
        note=f"Exact on both sides in every dtype, and left out: {exact}." if exact else "",
    )
