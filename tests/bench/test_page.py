"""A benchmark as table, CSV and page."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET

import pandas as pd
import pytest
from hand_made_bench import measured, run
from rich.console import Console

from cgverify.bench import page as bench_page
from cgverify.bench import table as bench_table
from cgverify.bench.baseline import changes
from cgverify.bench.table import COLUMNS, bench_frame

RUN = run(
    measured(0.98, seq_len=8),
    measured(1.3, seq_len=512, tight=False),
    measured(0.5, seq_len=2048, candidate="other<b>", same_bits=False),
    measured(0.6, seq_len=8, candidate="other<b>"),
    measured(None, seq_len=9, message="raised ValueError: <b>no</b>"),
    measured(0.7, seq_len=10, unit="B", value=7e8, reference=1e9),
)


def printed(width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    bench_table.show(console, RUN, changes(run(measured(0.5, seq_len=8)), RUN))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_says_it_all_in_eighty_columns() -> None:
    text = printed()
    assert "…" not in text
    for told in ("0.980", "~1.300", "0.970–0.990", "9.8 ms", "10 ms", "10%", "same", "other", "700 MB", "1 GB"):
        assert told in text
    assert "cgverify, attn prefill 2x9 float32 cpu: raised ValueError: <b>no</b>" in text
    assert "1 intervals were not tight" in text
    assert "1.960" in text
    assert "slower" in text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(2.5, "s", "2.5 s"), (0.0123, "s", "12.3 ms"), (3e-7, "s", "0.3 µs"), (0, "B", "0 B"), (None, "s", "–")],
)
def test_amounts(value: float | None, unit: str, text: str) -> None:
    assert bench_table.amount(value, unit) == text


def test_the_frame_has_a_row_each_and_survives_csv() -> None:
    frame = bench_frame(RUN)
    assert list(frame.columns) == COLUMNS
    again = pd.read_csv(io.StringIO(frame.to_csv(index=False)))
    assert len(again) == len(RUN.measured)
    assert again["ratio"].isna().sum() == 1
    assert again["share_of_limit"][0] == pytest.approx(1e8 / 1e11 / 0.0098)
    assert again["message"].notna().sum() == 1


def svgs(page: str) -> list[ET.Element]:
    return [ET.fromstring(found) for found in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def test_the_page_plots_ratios_and_shares_and_lists_every_figure() -> None:
    page = bench_page.render(RUN, changes(run(measured(0.5, seq_len=8)), RUN))
    ratios, shares = svgs(page)
    assert len(ratios.findall("path")) == 2
    assert len(shares.findall("path")) == 3  # two bridges and Hugging Face
    assert len(ratios.findall(".//circle")) == 4
    assert "2x512: 1.300 (1.290–1.310)" in page
    assert "Beside the baseline" in page
    assert page.count("<tr>") == 1 + len(RUN.measured) + 1 + 1
    assert "raised ValueError: &lt;b&gt;no&lt;/b&gt;" in page


def test_a_higher_ratio_is_drawn_higher_and_more_tokens_further_right() -> None:
    first, *_ = svgs(bench_page.render(RUN))
    circles = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in first.findall(".//circle")]
    (few_x, few_y), (many_x, many_y) = circles[:2]  # cgverify at 2x8 and at 2x512
    assert few_x < many_x
    assert few_y > many_y
    for x, y in circles:
        assert bench_page.LEFT <= x <= bench_page.WIDTH
        assert bench_page.TOP <= y <= bench_page.HEIGHT - bench_page.BOTTOM


def test_the_page_asks_nothing_of_a_network() -> None:
    page = bench_page.render(RUN)
    assert not re.search(r"https?://|<script|<link|@import|url\(|\bsrc=", page)


def test_a_page_without_a_plot_is_a_page() -> None:
    assert "<svg" not in bench_page.render(run(measured(1.0)))
