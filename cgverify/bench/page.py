"""A benchmark as one HTML page: plots as inline SVG, then the figures. It asks nothing of a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from jinja2 import Environment, PackageLoader, StrictUndefined

from cgverify.bench.baseline import ScenarioChange
from cgverify.bench.records import BenchRun, Measured
from cgverify.bench.table import BITS, amount, interval, ratio

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 460, 260, 52, 12, 40
COLOURS = ("#1f6f8b", "#c8553d", "#5b8c5a", "#8d6a9f", "#b08900", "#555555")


@dataclass(frozen=True)
class Mark:
    """A value at a place of the plot, in pixels, with its interval where it has one."""

    x: float
    y: float
    low: float
    high: float
    says: str


@dataclass(frozen=True)
class Line:
    name: str
    colour: str
    marks: tuple[Mark, ...]

    @property
    def path(self) -> str:
        return " ".join(f"{'L' if n else 'M'}{mark.x:.1f} {mark.y:.1f}" for n, mark in enumerate(self.marks))


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Plot:
    """Lines over token counts, both axes in pixels of a `WIDTH` × `HEIGHT` picture."""

    title: str
    says: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    guide: float | None
    """Where the value 1 lies."""


Value = tuple[int, float, float, float, str]
"""Tokens, value, ends of its interval, words."""


def render(run: BenchRun, compared: Sequence[ScenarioChange] = ()) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("cgverify.bench", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        run=run,
        rows=[_row(run, each) for each in run.measured],
        plots=[*plots(run)],
        changes=[_change(change) for change in compared],
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        top=TOP,
        bottom=HEIGHT - BOTTOM,
    )


def plots(run: BenchRun) -> Iterable[Plot]:
    """For each component and scenario at two sizes or more: the ratio, and the time beside the limit."""
    timed = [each for each in run.measured if each.unit == "s" and each.ratio is not None and each.point.batch_size]
    for (component, scenario, dtype, device), group in groupby(sorted(timed, key=_family), key=_family):
        own = list(group)
        if len({_tokens(each) for each in own}) < 2:
            continue
        title = f"{component}, {scenario}, {dtype} on {device}"
        by_candidate = {
            name: [_ratio_value(each) for each in own if each.candidate == name]
            for name in dict.fromkeys(each.candidate for each in own)
        }
        yield _plot(title, "time over Hugging Face's, with 95 % intervals", by_candidate, _plain)
        shares = {
            name: [value for each in own if each.candidate == name and (value := _share(run, each, each.value))]
            for name in by_candidate
        }
        first = next(iter(by_candidate))
        shares["Hugging Face"] = [
            value for each in own if each.candidate == first and (value := _share(run, each, each.reference))
        ]
        if all(shares.values()):
            yield _plot(title, "share of the machine's matrix-product rate", shares, _percent)


def _family(measured: Measured) -> tuple[str, str, str, str]:
    point = measured.point
    return point.component, point.scenario, point.dtype, point.device


def _tokens(measured: Measured) -> int:
    """What the plots go by: the length of the cache where there is one token, else all tokens of all rows."""
    point = measured.point
    return point.cached + 1 if point.scenario == "decode" else point.batch_size * point.seq_len


def _ratio_value(each: Measured) -> Value:
    assert each.ratio is not None
    assert each.low is not None
    assert each.high is not None
    return _tokens(each), each.ratio, each.low, each.high, f"{each.point.shape}: {each.ratio:.3f} ({interval(each)})"


def _share(run: BenchRun, each: Measured, seconds: float | None) -> Value | None:
    share = run.share_of_limit(each, seconds)
    if share is None:
        return None
    return _tokens(each), share, share, share, f"{each.point.shape}: {share:.0%}, {amount(seconds, 's')}"


def _plot(title: str, says: str, lines: dict[str, list[Value]], label: Callable[[float], str]) -> Plot:
    values = [value for line in lines.values() for value in line]
    most = max([value[3] for value in values] + [1.0]) * 1.05
    tokens = sorted({value[0] for value in values})
    first, last = math.log2(tokens[0]), math.log2(tokens[-1])

    def x(count: int) -> float:
        return LEFT + 12 + (WIDTH - LEFT - 30) * (math.log2(count) - first) / (last - first)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / most

    step = 0.25 if most <= 2 else 10 ** math.floor(math.log10(most))
    return Plot(
        title=title,
        says=says,
        lines=tuple(
            Line(
                name,
                COLOURS[place % len(COLOURS)],
                tuple(
                    Mark(x(count), y(value), y(low), y(high), words)
                    for count, value, low, high, words in sorted(line, key=lambda value: value[0])
                ),
            )
            for place, (name, line) in enumerate(lines.items())
        ),
        x_ticks=tuple(Tick(x(count), str(count)) for count in _apart(tokens, x)),
        y_ticks=tuple(Tick(y(n * step), label(n * step)) for n in range(int(most / step) + 1)),
        guide=y(1.0),
    )


def _apart(tokens: Sequence[int], x: Callable[[int], float]) -> list[int]:
    """Those whose labels do not touch."""
    kept: list[int] = []
    for count in tokens:
        if not kept or x(count) - x(kept[-1]) > 30:
            kept.append(count)
    return kept


def _plain(value: float) -> str:
    return f"{value:.2f}"


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _row(run: BenchRun, each: Measured) -> list[str]:
    point = each.point
    share = run.share_of_limit(each, each.value)
    return [
        *(point.component, point.scenario, point.shape, point.dtype, point.device, each.candidate),
        *(ratio(each), interval(each), amount(each.value, each.unit), amount(each.reference, each.unit)),
        "" if share is None else f"{share:.0%}",
        each.message or BITS[each.same_bits],
    ]


def _change(change: ScenarioChange) -> list[str]:
    point = change.now.point
    factor = "–" if change.factor is None else f"{change.factor:.3f}"
    return [
        *(point.component, point.scenario, point.shape, point.dtype, change.now.candidate),
        *(ratio(change.before), ratio(change.now), factor, change.says),
    ]
