"""What the charts of a run show, and the same as a table for who cannot see them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

from markupsafe import Markup

from cgverify.common.records import CellResult
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
    """Error of candidate and reference against the oracle at each tap: a chart per candidate.

    Drawn in units of the bound, so that all taps and dtypes share a scale; the table has the errors themselves.
    """
    apart = tuple(axis for axis in axes if axis.name not in ("case", "dtype"))
    greatest: dict[str, dict[tuple[str, str], Errors]] = {}
    for cell, finding in every_finding(results):
        if finding.r is not None and finding.reference_r is not None:
            found = Errors(
                finding.r, finding.reference_r, finding.candidate_error or 0.0, finding.reference_error or 0.0
            )
            errors = greatest.setdefault(" · ".join(setting_of(cell, apart)), {})
            key = (tap_name(cell, finding), cell.dtype)
            errors[key] = found if key not in errors else Errors(*map(max, astuple(errors[key]), astuple(found)))
    dtypes = next(axis.values for axis in axes if axis.name == "dtype")
    charts = [_errors(name, errors, dtypes) for name, errors in greatest.items()]
    return [chart for chart in charts if chart is not None]


@dataclass(frozen=True)
class Errors:
    """The greatest at one tap in one dtype: in units of the bound, and absolute."""

    r: float
    reference_r: float
    candidate: float
    reference: float


def _errors(name: str, errors: dict[tuple[str, str], Errors], dtypes: Sequence[str]) -> Figure | None:
    inexact = {tap for (tap, _), of in errors.items() if max(of.r, of.reference_r) > 0}
    exact = list(dict.fromkeys(tap for tap, _ in errors if tap not in inexact))
    drawn = [
        (tap, dtype, errors[tap, dtype])
        for tap in dict.fromkeys(tap for tap, _ in errors)
        for dtype in dtypes
        if tap in inexact and (tap, dtype) in errors
    ]
    if not drawn:
        return None
    return Figure(
        title=f"Error by tap, {name}" if name else "Error by tap",
        chart=pair_chart(
            [Pair(tap, dtype, of.r, of.reference_r) for tap, dtype, of in drawn],
            title=f"Error of both sides against the oracle by tap {name}".rstrip(),
            x_label="greatest |error| over its bound, all layers and cases",
            limit=BOUND,
        ),
        key=tuple(styles(list(dict.fromkeys(dtype for _, dtype, _ in drawn))).values()),
        headings=("tap", "dtype", "r", "r of Hugging Face", "|error|", "|error| of Hugging Face"),
        rows=tuple((tap, dtype, *map(figure, astuple(of))) for tap, dtype, of in drawn),
        note=f"Exact on both sides in every dtype, and left out: {', '.join(exact)}." if exact else "",
    )


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
