"""A benchmark as table, CSV and page."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET

import pandas as pd
import pytest
from hand_made_bench import measured, run

from cgverify.bench import page as bench_page
from cgverify.bench.baseline import changes
from cgverify.bench.table import COLUMNS, amount, bench_frame, sections
from cgverify.report.render import terminal

RUN = run(
    measured(0.98, seq_len=8),
    measured(1.3, seq_len=512, tight=False),
    measured(0.5, seq_len=2048, candidate="other<b>", same_bits=False),
    measured(0.6, seq_len=8, candidate="other<b>"),
    measured(None, seq_len=9, message="raised ValueError: <b>no</b>"),
    measured(0.7, seq_len=10, unit="B", value=7e8, reference=1e9),
)
SVG = "{http://www.w3.org/2000/svg}"


def test_table_shows_every_figure_in_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = terminal(sections(RUN, changes(run(measured(0.5, seq_len=8)), RUN)))
    assert "…" not in text
    for shown in ("0.980", "~1.300", "0.970–0.990", "9.8 ms", "10 ms", "10%", "same", "other", "700 MB", "1 GB"):
        assert shown in text
    assert "cgverify, attn prefill 2x9 float32 cpu: raised ValueError: <b>no</b>" in text
    assert "1 intervals were still wide" in text
    assert "1.960" in text
    assert "slower" in text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(2.5, "s", "2.5 s"), (0.0123, "s", "12.3 ms"), (3e-7, "s", "0.3 µs"), (0, "B", "0 B"), (None, "s", "–")],
)
def test_amount_has_three_digits_and_a_unit(value: float | None, unit: str, text: str) -> None:
    assert amount(value, unit) == text


def test_frame_has_a_row_per_result_and_survives_csv() -> None:
    frame = bench_frame(RUN)
    assert list(frame.columns) == COLUMNS
    again = pd.read_csv(io.StringIO(frame.to_csv(index=False)))
    assert len(again) == len(RUN.measured)
    assert again["ratio"].isna().sum() == 1
    assert again["share_of_limit"][0] == pytest.approx(1e8 / 1e11 / 0.0098)
    assert again["message"].notna().sum() == 1


def charts(page: str) -> list[ET.Element]:
    return [ET.fromstring(found) for found in re.findall(r"<svg xmlns.*?</svg>", page, re.DOTALL)]


def test_page_has_charts_and_every_figure() -> None:
    page = bench_page.render(RUN, changes(run(measured(0.5, seq_len=8)), RUN))
    ratios, shares = charts(page)
    assert len(ratios.findall(f".//{SVG}polyline")) == 2
    assert len(shares.findall(f".//{SVG}polyline")) == 3  # two bridges and Hugging Face
    assert len(ratios.findall(f".//{SVG}title")) == 4
    assert "cgverify, 1024: 1.3 (1.29–1.31)" in page
    assert "compared with the baseline" in page
    assert page.count('<th scope="row">') == len(RUN.measured) + 1
    assert "raised ValueError: &lt;b&gt;no&lt;/b&gt;" in page


def test_chart_has_higher_ratios_higher_and_more_tokens_right() -> None:
    first, *_ = charts(bench_page.render(RUN))
    line = first.find(f".//{SVG}polyline")
    assert line is not None
    (few_x, few_y), (many_x, many_y) = (map(float, point.split(",")) for point in line.attrib["points"].split())
    assert few_x < many_x
    assert few_y > many_y


def test_page_loads_nothing_from_a_network() -> None:
    page = bench_page.render(RUN).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|<script|@import|url\(|\bsrc=", page)


def test_page_without_two_sizes_has_no_chart() -> None:
    assert not charts(bench_page.render(run(measured(1.0))))
