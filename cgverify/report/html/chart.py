"""Charts as SVG: lines over a whole-numbered axis, and pairs of dots over a logarithmic one.

A chart can be part of a page or a file of its own. Colours are custom properties with fallback values, so that a page
can adapt them to its theme. Series differ in shape and dash as well as in colour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from cgverify.report.html.scale import LinearScale, LogScale
from cgverify.report.html.templating import render_template

SHAPES = ("circle", "square", "triangle", "diamond")
COLOURS = ("#0072b2", "#b26a00", "#00795a", "#a6487f", "#4d5b6a", "#6b4fbb")
DASHES = ("", "6 3", "2 3", "8 3 2 3")
MOST_LABELS = 18


@dataclass(frozen=True)
class Series:
    """A line: its name, and its values at whole numbers, such as layers or sequence lengths."""

    name: str
    points: tuple[tuple[int, float], ...]
    intervals: tuple[tuple[float, float], ...] = ()
    """The ends of each value's interval, if the values have intervals."""


@dataclass(frozen=True)
class ErrorPair:
    """The errors of candidate and reference, under a row's label and a series' name."""

    row: str
    series: str
    candidate: float
    reference: float


@dataclass(frozen=True)
class Style:
    """How a series is drawn."""

    name: str
    colour: str
    shape: str
    dash: str


def styles(names: Sequence[str]) -> dict[str, Style]:
    """Return a style for each series, by its number."""
    return {
        name: Style(
            name,
            f"var(--series-{number % len(COLOURS)}, {COLOURS[number % len(COLOURS)]})",
            SHAPES[number % len(SHAPES)],
            DASHES[number % len(DASHES)],
        )
        for number, name in enumerate(names)
    }


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    limit: float | None = None,
    limit_label: str = "bound",
    scale: type[LogScale] | type[LinearScale] = LogScale,
    x_scale: Callable[[float], float] = float,
) -> Markup:
    """Draw values that are not negative over whole numbers.

    Args:
        title: the label for screen readers.
        limit: the value at which a dashed line is drawn across.
        scale: the axis of the values.
        x_scale: the axis of the whole numbers: `float` is linear, `math.log2` logarithmic.
    """
    width, left, right, top, bottom = 560, 46, 16, 20, 224
    values = [y for one in series for _, y in one.points] + ([] if limit is None else [limit])
    ends = [end for one in series for interval in one.intervals for end in interval]
    y_scale = scale.over(values + ends, start=bottom, end=top)
    xs = sorted({x for one in series for x, _ in one.points})
    span = (x_scale(xs[-1]) - x_scale(xs[0])) or 1

    def across(x: int) -> float:
        return round(left + 12 + (x_scale(x) - x_scale(xs[0])) / span * (width - left - right - 24), 1)

    def mark(name: str, x: int, y: float, interval: tuple[float, float] | None) -> tuple[Any, ...]:
        text = f"{name}, {x}: {y:.3g}" + ("" if interval is None else f" ({interval[0]:.3g}–{interval[1]:.3g})")
        return across(x), y_scale.place(y), interval and [y_scale.place(end) for end in interval], text

    def marks(one: Series) -> list[tuple[Any, ...]]:
        intervals: Sequence[tuple[float, float] | None] = one.intervals or [None] * len(one.points)
        return [mark(one.name, x, y, interval) for (x, y), interval in zip(one.points, intervals, strict=True)]

    look = styles([one.name for one in series])
    return render_template(
        "lines.svg.j2",
        title=title,
        x_label=x_label,
        width=width,
        left=left,
        right=width - right,
        bottom=bottom,
        y_ticks=y_scale.ticks(),
        x_ticks=[(across(x), x) for x in xs[:: max(1, -(-len(xs) // MOST_LABELS))]],
        limit=None if limit is None else y_scale.place(limit),
        limit_label=limit_label,
        lines=[(look[one.name], marks(one)) for one in series],
    )


def pair_chart(pairs: Sequence[ErrorPair], *, title: str, x_label: str, limit: float | None = None) -> Markup:
    """Draw a row per label: for each series a ring (reference) and a dot (candidate), joined, on a logarithmic scale.

    Args:
        title: the label for screen readers.
        limit: the value at which a dashed line is drawn down.
    """
    rows = list(dict.fromkeys(pair.row for pair in pairs))
    look = styles(list(dict.fromkeys(pair.series for pair in pairs)))
    width, left, right, top, lane = 760, 200, 20, 26, 9
    step = lane * (len(look) + 1)
    values = [value for pair in pairs for value in (pair.candidate, pair.reference)]
    values += [] if limit is None else [limit]
    scale = LogScale.over(values, start=left + 12, end=width - right)
    return render_template(
        "pairs.svg.j2",
        title=title,
        x_label=x_label,
        width=width,
        left=left,
        right=width - right,
        top=top,
        step=step,
        rows=rows,
        x_ticks=scale.ticks(),
        limit=None if limit is None else scale.place(limit),
        pairs=[
            (
                look[pair.series],
                top + step * rows.index(pair.row) + lane * (list(look).index(pair.series) + 1),
                scale.place(pair.candidate),
                scale.place(pair.reference),
                f"{pair.row}, {pair.series}: candidate {pair.candidate:.3g}, reference {pair.reference:.3g}",
            )
            for pair in pairs
        ],
    )
