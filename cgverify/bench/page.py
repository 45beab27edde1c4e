"""A benchmark as one HTML page: charts, then the tables. The page loads nothing from a network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

from cgverify.bench.baseline import ScenarioChange
from cgverify.bench.records import BenchRun, Measured
from cgverify.bench.table import sections
from cgverify.common.printable import printable
from cgverify.report.html.chart import Series, line_chart, styles
from cgverify.report.html.notebook import sections_output
from cgverify.report.html.run_charts import ChartWithTable
from cgverify.report.html.scale import LinearScale
from cgverify.report.html.templating import render_template


def render(run: BenchRun, compared: Sequence[ScenarioChange] = ()) -> str:
    """Return the page."""
    page = render_template(
        "sections.html.j2",
        title=f"{run.model}: cost of the bridge compared with Hugging Face",
        charts=[*_charts(run)],
        charts_note="By tokens: those of all rows together, or the length of the cache. The dashed line is Hugging "
        "Face's time, or the time of the matrix products alone. Bars are 95 % intervals.",
        sections=sections(run, compared),
    )
    return printable(page)


def notebook_output(run: BenchRun) -> str:
    """Return the charts and tables for the output of a notebook's cell."""
    return sections_output(sections(run), _charts(run))


def _charts(run: BenchRun) -> Iterator[ChartWithTable]:
    """Yield the ratio, and the share of the limit, for each component and scenario with two sizes or more."""
    timed = [each for each in run.measured if each.unit == "s" and each.ratio is not None and each.point.batch_size]
    for (component, scenario, dtype, device), group in groupby(sorted(timed, key=_family), key=_family):
        by_candidate: dict[str, list[Measured]] = {}
        for each in sorted(group, key=_tokens):
            by_candidate.setdefault(each.candidate, []).append(each)
        if len({_tokens(each) for own in by_candidate.values() for each in own}) < 2:
            continue
        ratios = [
            Series(
                name,
                tuple((_tokens(each), each.ratio or 0.0) for each in own),
                tuple((each.low or 0.0, each.high or 0.0) for each in own),
            )
            for name, own in by_candidate.items()
        ]
        where = f"{component}, {scenario}, {dtype} on {device}"
        yield _chart(f"{where}: time over Hugging Face's", ratios, "Hugging Face")
        values = {
            name: [(each, run.share_of_limit(each, each.value)) for each in own] for name, own in by_candidate.items()
        }
        first = next(iter(by_candidate.values()))
        values["Hugging Face"] = [(each, run.share_of_limit(each, each.reference)) for each in first]
        shares = [
            Series(name, tuple((_tokens(each), share) for each, share in own if share)) for name, own in values.items()
        ]
        if all(one.points for one in shares):
            yield _chart(f"{where}: share of the machine's matrix-product rate", shares, "limit")


def _chart(title: str, series: Sequence[Series], limit_label: str) -> ChartWithTable:
    chart = line_chart(
        series, title=title, x_label="tokens", limit=1.0, limit_label=limit_label, scale=LinearScale, x_scale=math.log2
    )
    return ChartWithTable(title, chart, tuple(styles([one.name for one in series]).values()))


def _family(measured: Measured) -> tuple[str, str, str, str]:
    point = measured.point
    return point.component, point.scenario, point.dtype, point.device


def _tokens(measured: Measured) -> int:
    """Return the length of the cache if there is one new token, else the tokens of all rows."""
    point = measured.point
    return point.cached + 1 if point.scenario == "decode" else point.batch_size * point.seq_len
