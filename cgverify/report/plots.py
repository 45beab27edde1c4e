"""Figures of matplotlib, which is the extra `plot`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cgverify.common.errors import UsageError
from cgverify.common.printable import printable
from cgverify.common.records import CellResult, Run
from cgverify.report.comparison import comparison_line
from cgverify.report.html.chart import COLOURS
from cgverify.report.html.heat_map import heat_map
from cgverify.report.html.run_charts import BOUND, greatest_by_layer, greatest_errors
from cgverify.report.html.scale import LogScale
from cgverify.report.outcome import verdict_line
from cgverify.runs.comparison.changes import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D")
MOST_ROWS = 40
"""The taps of a figure: those with the greatest r, or with the greatest change of it."""
BAD, GOOD = "#b83a00", "#0b5c96"


def run_figure(run: Run, results: Sequence[CellResult]) -> Figure:
    """Return a figure with the greatest r of each tap, of candidate and reference, and the greatest r in each layer.

    Raises:
        UsageError: matplotlib is not installed.
    """
    axes = heat_map(run, results).axes
    ratios: dict[str, dict[str, tuple[float, float]]] = {}
    greatest: dict[str, float] = {}
    for name, by_tap in greatest_errors(results, axes).items():
        for (tap, dtype), (candidate, reference, *_) in by_tap.items():
            ratios.setdefault(f"{name} · {dtype}".removeprefix(" · "), {})[tap] = candidate, reference
            greatest[tap] = max(greatest.get(tap, 0.0), candidate, reference)
    most = sorted(greatest, key=lambda tap: -greatest[tap])[:MOST_ROWS]
    taps = [tap for tap in greatest if tap in most]  # in the order of the computation
    figure = _figure(len(taps), width=11)
    by_tap_axes, by_layer_axes = figure.subplots(1, 2, width_ratios=[3, 2])
    scale = _scale(by_tap_axes.xaxis, (r for own in ratios.values() for both in own.values() for r in both))
    for number, (name, own) in enumerate(ratios.items()):
        shown = [tap for tap in taps if tap in own]
        rows = [taps.index(tap) + (number + 1) / (len(ratios) + 1) - 0.5 for tap in shown]
        colour, marker = _look(number)
        for side, filled in ((1, "none"), (0, colour)):
            places = [scale.place(own[tap][side]) for tap in shown]
            label = "" if side else printable(name)
            by_tap_axes.scatter(places, rows, 22, label=label, facecolors=filled, edgecolors=colour, marker=marker)
    by_tap_axes.axvline(scale.place(BOUND), color=BAD, linestyle="--", label="bound")
    _label_rows(by_tap_axes, taps)
    by_tap_axes.set_xlabel("greatest r: filled is the candidate, hollow the reference")
    lines = greatest_by_layer(results, axes, "r")
    scale = _scale(by_layer_axes.yaxis, (r for line in lines for _, r in line.points))
    for number, line in enumerate(lines):
        colour, marker = _look(number)
        layers, places = [layer for layer, _ in line.points], [scale.place(r) for _, r in line.points]
        by_layer_axes.plot(layers, places, color=colour, marker=marker, label=printable(line.name))
    by_layer_axes.axhline(scale.place(BOUND), color=BAD, linestyle="--", label="bound")
    by_layer_axes.xaxis.get_major_locator().set_params(integer=True)
    by_layer_axes.set(xlabel="layer", ylabel="greatest r")
    for each in (by_tap_axes, by_layer_axes):
        each.legend(fontsize="small")
    figure.suptitle(printable(f"{run.model}: {verdict_line(results)}"), fontsize="medium")
    return figure


def comparison_figure(comparison: Comparison) -> Figure:
    """Return a figure with the greatest r of each tap whose verdict changed or whose r grew, in both runs.

    Raises:
        UsageError: matplotlib is not installed.
    """
    found = [(growth.cell, growth.finding, growth.before, growth.after) for growth in comparison.growths]
    found += [
        (pair.cell, pair.finding, pair.before.r, pair.after.r)
        for pair in (*comparison.worse, *comparison.better)
        if pair.before and pair.after and pair.before.r is not None and pair.after.r is not None
    ]
    changed: dict[str, tuple[float, float]] = {}
    for cell, finding, old, new in found:
        name = f"{cell.kind} {finding.tap}, {cell.candidate} {cell.dtype}"
        before, after = changed.get(name, (0.0, 0.0))
        changed[name] = max(before, old), max(after, new)
    figure = _figure(min(len(changed), MOST_ROWS), width=9)
    axes = figure.subplots()
    scale = _scale(axes.xaxis, (r for both in changed.values() for r in both))
    places = {name: [scale.place(r) for r in both] for name, both in changed.items()}
    names = sorted(places, key=lambda name: -abs(places[name][1] - places[name][0]))[:MOST_ROWS]
    for row, name in enumerate(names):
        before, after = places[name]
        colour = BAD if after > before else GOOD
        axes.plot([before, after], [row, row], color=colour)
        axes.scatter([before], [row], facecolors="white", edgecolors=colour, zorder=3)
        axes.scatter([after], [row], color=colour, zorder=3)
    axes.axvline(scale.place(BOUND), color=BAD, linestyle="--")
    _label_rows(axes, names)
    axes.set_xlabel("greatest r: hollow is the baseline, filled the run")
    axes.set_title(printable(comparison_line(comparison, None)), fontsize="medium")
    return figure


def _figure(rows: int, width: float) -> Figure:
    """Return an empty figure, which pyplot has forgotten: a notebook would show its figures a second time."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise UsageError("Figures need matplotlib: pip install 'cgverify[plot]'.") from None
    figure = plt.figure(figsize=(width, max(3.0, 1.2 + 0.2 * rows)), layout="constrained")
    plt.close(figure)
    return figure


def _scale(axis: Axis, values: Iterable[float]) -> LogScale:
    """Return the scale of the page's charts, on which 0 and infinity have places, and label an axis with it."""
    scale = LogScale.over([*values, BOUND], 0.0, 400.0)
    places, labels = zip(*scale.ticks(), strict=True)
    axis.set_ticks(places, labels)
    return scale


def _look(number: int) -> tuple[str, str]:
    """Return the colour and the marker of a series."""
    return COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]


def _label_rows(axes: Axes, names: Sequence[str]) -> None:
    """Label the rows, from the top down."""
    axes.set_yticks(range(len(names)), [printable(name) for name in names], fontsize="small")
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axes.grid(axis="y", alpha=0.3)
