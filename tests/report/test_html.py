"""The HTML report in a real browser."""

from __future__ import annotations

import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli
from made_records import a_checkpoint, a_result, a_run, a_run_folder
from playwright.sync_api import Browser, Page, expect, sync_playwright

from cgverify.common.records import CellResult, Finding, Verdict
from cgverify.report.comparison import comparison_sections
from cgverify.report.html.chart import ErrorPair, Series, line_chart, pair_chart
from cgverify.report.html.notebook import run_output
from cgverify.report.html.page import MOST_FINDINGS, run_page
from cgverify.report.html.scale import LogScale
from cgverify.runs.baseline import StoredRun
from cgverify.runs.comparison import compare_runs

RUN = a_run(
    created="2026-01-02T03:04:05+00:00",
    model="small",
    checkpoints=[a_checkpoint(name="small", asked="small")],
    settings={"model": "small", "weights": "auto", "rotary_dims": [], "dtypes": ["float32", "bfloat16"]},
    environment={"versions": {"torch": "2.13"}, "numerics": {"threads": 2}},
)
HOSTILE = """</script><script>window.owned = 1</script><img src=x onerror="window.owned = 1">'"&"""
LAYERS, DTYPES, CASES = (0, 1, 2), ("bfloat16", "float32"), ("default", "decode")


def result(layer: int | None, kind: str, dtype: str, case: str, findings: Sequence[Finding]) -> CellResult:
    fields = {"layer": layer, "kind": kind, "dtype": dtype, "case": case}
    return a_result(*findings, model="small", candidate="mine", **fields)


def finding(tap: str, verdict: Verdict = Verdict.BITWISE, r: float | None = 0.25, **fields: Any) -> Finding:
    figures = {"stage": "mix", "reference_r": 0.2, "candidate_error": 1e-7, "reference_error": 1e-7, "max_abs": 0.0}
    return Finding(**{"step": "forward", "tap": tap, "verdict": verdict, "r": r, **figures, **fields})


def ratio(layer: int, dtype: str, case: str) -> float:
    """Return a different r for every cell, at most 0.5, which is in layer 2."""
    return 0.5 - (2 - layer) / 10 - DTYPES.index(dtype) / 100 - CASES.index(case) / 1000


def passing() -> list[CellResult]:
    return [
        *(result(None, "embed", dtype, "default", [finding("hook_out", r=0.0)]) for dtype in DTYPES),
        *(
            result(
                layer,
                "attn",
                dtype,
                case,
                [finding("hook_z"), finding("hook_out", Verdict.BOUNDED, ratio(layer, dtype, case))],
            )
            for layer, dtype, case in product(LAYERS, DTYPES, CASES)
        ),
    ]


def failing() -> list[CellResult]:
    """Return results in which hook_z of layer 1 fails in bfloat16 with a cache, and the block lacks a hook."""
    wrong = finding("hook_z", Verdict.DIVERGED, 419.0, max_abs=0.5, message=f"mix is off {HOSTILE}")
    results = [
        one.model_copy(update={"findings": (wrong, *one.findings[1:])})
        if (one.cell.layer, one.cell.dtype, one.cell.case) == (1, "bfloat16", "decode")
        else one
        for one in passing()
    ]
    block = [finding("attn.hook_rot_q", Verdict.MISSING, None, message="never fired")]
    return [*results, result(0, "block", "float32", "default", block)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not on the PATH")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


Open = Callable[..., Page]


@pytest.fixture
def look(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Open reports as files. Afterwards nothing else was fetched, and the console is empty."""
    opened: list[Page] = []
    console: list[str] = []
    fetched: set[str] = set()
    path = tmp_path / "report.html"

    def open_(report: str, **context: Any) -> Page:
        path.write_text(report, encoding="utf-8")
        page = browser.new_page(**context)
        opened.append(page)
        page.on("request", lambda request: fetched.add(request.url))
        page.on("console", lambda message: console.append(message.text))
        page.on("pageerror", lambda error: console.append(str(error)))
        page.goto(path.as_uri())
        return page

    yield open_
    for page in opened:
        page.close()
    assert {url for url in fetched if not url.startswith("data:")} == {path.as_uri()}
    assert console == []


def square(page: Page, tap: str, column: str) -> Any:
    """Return the heat map's square of a tap below a heading."""
    headings = page.locator("#heat thead tr").nth(1).locator("th").all_inner_texts()
    place = [heading.strip() for heading in headings].index(column)
    return page.locator(f'#heat tr[data-tap="{tap}"]').locator("th, td").nth(place)


def shown_rows(page: Page) -> list[str]:
    rows = page.locator("#finding-table tbody tr")
    shown: list[str] = rows.evaluate_all("all => all.filter(row => row.offsetHeight).map(row => row.innerText)")
    return shown


def test_passing_run_shows_no_failures(look: Open) -> None:
    page = look(run_page(RUN, passing()))
    assert page.locator(".outcome").inner_text().split() == ["=", "Every", "tap", "holds"]
    assert page.locator("#failures, #changes").count() == 0
    # hook_z and hook_out of attention in 3 layers, 2 dtypes and 2 cases; embed outside the layers, 2 dtypes, 1 case.
    assert page.locator("#heat tbody td[class*=v]").count() == 2 * (3 + 2 + 2) + (1 + 2 + 1)
    assert page.locator("#heat tbody .v6, #heat tbody .v5").count() == 0
    assert page.locator("dl").first.inner_text().split("\n")[4:8] == ["candidate", "mine", "dtype", "float32, bfloat16"]
    assert "|Δ| is 0 at every depth" in page.locator("main").inner_text()


def test_failing_run_shows_faults_first_with_the_command(look: Open) -> None:
    page = look(run_page(RUN, failing()))
    assert page.locator(".outcome").inner_text().split() == ["×", "2", "faults"]
    first = page.locator(".failures li").first.inner_text()
    assert "blocks.1.attn, mine in bfloat16, case decode: mix is off" in first
    assert "cgverify all-components --model small --component blocks.1.attn --case decode --bridge mine" in first
    assert square(page, "attn.hook_z", "1").inner_text() == "×"
    assert square(page, "attn.hook_z", "2").inner_text() == "="
    assert square(page, "attn.hook_rot_q", "0").inner_text() == "∅"
    assert page.locator("#finding-table tbody tr").first.inner_text().startswith("× diverged")


def test_messages_with_markup_are_shown_as_text(look: Open) -> None:
    page = look(run_page(RUN, failing()))
    assert HOSTILE in page.locator(".failures li").first.inner_text()
    assert page.evaluate("window.owned") is None


def test_pointing_at_a_square_shows_r_and_where_it_is(look: Open) -> None:
    page = look(run_page(RUN, failing()))
    square(page, "attn.hook_z", "1").hover()
    tip = page.locator("#tip").inner_text()
    assert "diverged · r 419" in tip
    assert "bfloat16 · decode · layer 1" in tip
    page.mouse.move(1, 1)
    assert page.locator("#tip").is_hidden()
    page.locator(".lines .mark").last.hover()
    assert "float32, 2: 0.49\nbfloat16, 2: 0.5" in page.locator("#tip").inner_text()  # these marks overlap


def test_keyboard_reaches_squares_and_findings(look: Open) -> None:
    page = look(run_page(RUN, failing()))
    page.locator("#heat td[tabindex='0']").focus()
    page.keyboard.press("ArrowDown")  # from embed, outside the layers, there is nothing below
    assert "embed.hook_out" in page.locator("#tip").inner_text()
    for _ in range(2):  # over the empty squares of the layers
        page.keyboard.press("ArrowRight")
    assert "bfloat16" in page.locator("#tip").inner_text()
    page.keyboard.press("ArrowDown")
    assert "attn.hook_z · bfloat16" in page.locator("#tip").inner_text()
    page.keyboard.press("Enter")
    assert page.locator("#tip").is_hidden()
    assert len(shown_rows(page)) == 6


def test_pressing_a_square_shows_its_findings(look: Open) -> None:
    page = look(run_page(RUN, failing()))
    page.locator("#map-filters select").first.select_option("bfloat16")
    square(page, "attn.hook_z", "1").click()
    assert [row.split("\t")[:4] for row in shown_rows(page)] == [
        [verdict, "attn", "1", "attn.hook_z"] for verdict in ("× diverged", "= bitwise")
    ]


def test_first_touch_shows_r_and_second_the_findings(look: Open) -> None:
    page = look(run_page(RUN, failing()), has_touch=True, viewport={"width": 360, "height": 740})
    wrong = square(page, "attn.hook_z", "1")
    wrong.tap()
    assert "r 419" in page.locator("#tip").inner_text()
    assert len(shown_rows(page)) == 27
    wrong.tap()
    assert page.locator("#tip").is_hidden()
    assert len(shown_rows(page)) == 4


def test_heat_map_filters_by_dtype(look: Open) -> None:
    page = look(run_page(RUN, failing()))
    page.locator("#map-filters select").first.select_option("float32")
    assert square(page, "attn.hook_z", "1").inner_text() == "="
    assert square(page, "attn.hook_z", "bfloat16").inner_text() == ""
    page.locator("#map-filters select").first.select_option("all")
    assert square(page, "attn.hook_z", "1").inner_text() == "×"


def test_table_of_findings_filters(look: Open) -> None:
    page = look(run_page(RUN, failing()))
    assert len(shown_rows(page)) == 2 + 2 * 12 + 1
    page.locator("[data-name=verdict]").select_option("missing")
    assert len(shown_rows(page)) == 1
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#finding-table tbody tr:not([hidden])")).to_have_count(
        27
    )  # a form clears itself a moment later
    page.locator("[data-name=dtype]").select_option("float32")
    page.locator("[data-name=component]").select_option("attn")
    page.locator("#finding-text").fill("DECODE hook_z")
    assert len(shown_rows(page)) == 3
    assert page.locator("#finding-count").inner_text() == "3 of 3 findings shown, out of 27 in this page"


def test_squares_without_scripts_equal_those_with_scripts(browser: Browser, look: Open) -> None:
    """The page's script and its template compute the worst separately."""
    report = run_page(RUN, failing())

    def squares(page: Page) -> list[tuple[str, str, str]]:
        """Return the class, the text and the r of each square."""
        cells = page.locator("#heat tbody td").all()
        labels = [cell.get_attribute("title") or cell.get_attribute("aria-label") or "" for cell in cells]
        figures = ["".join(re.findall(r"· r (\S+)", text)) for text in labels]
        looks = [(cell.get_attribute("class") or "").strip() for cell in cells]
        return list(zip(looks, (cell.inner_text() for cell in cells), figures, strict=True))

    plain = look(report, java_script_enabled=False)
    shown = squares(plain)
    assert shown == squares(look(report))
    assert square(plain, "attn.hook_z", "1").get_attribute("title") == "diverged · r 419 · bfloat16 · decode · layer 1"
    assert not plain.locator("#finding-filters").is_visible()


@pytest.mark.parametrize("report", [passing, failing])
def test_page_fits_a_phone(look: Open, report: Callable[[], list[CellResult]]) -> None:
    page = look(run_page(RUN, report(), baseline=StoredRun(RUN, passing())), viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    table = page.locator(".scroll:has(#finding-table)")
    assert table.evaluate("box => box.scrollWidth > box.clientWidth")  # it scrolls in its own box


def test_page_prints_completely_without_controls(look: Open) -> None:
    page = look(run_page(RUN, failing(), baseline=StoredRun(RUN, passing())), viewport={"width": 1032, "height": 300})
    page.emulate_media(media="print")
    assert page.locator("nav, select, button, input").locator("visible=true").count() == 0
    boxes = page.locator(".scroll")
    for side in ("Width", "Height"):
        assert boxes.evaluate_all(f"all => all.filter(box => box.scroll{side} > box.client{side} + 1).length") == 0
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")


def luminance(colour: str) -> float:
    """Return the relative luminance of `rgb(r, g, b)` as WCAG 2 defines it."""
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted([luminance(one), luminance(other)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_verdicts_are_distinguishable_without_colour(look: Open, scheme: str) -> None:
    """Symbols differ and contrast with their background. Failures and passes differ in lightness."""
    page = look(run_page(RUN, passing()), color_scheme=scheme)
    badges = page.locator(".legend .badge")
    looks = badges.evaluate_all(
        "all => all.map(one => [getComputedStyle(one).color, getComputedStyle(one).background])"
    )
    for ink, ground in looks:
        assert contrast(ink, ground) >= 4.5
    grounds = dict(zip(Verdict, (ground for _, ground in looks), strict=True))
    for bad, good in product((Verdict.DIVERGED, Verdict.MISSING), (Verdict.BITWISE, Verdict.ULP, Verdict.BOUNDED)):
        assert contrast(grounds[bad], grounds[good]) >= 3
    symbols = badges.locator("span").all_inner_texts()
    assert len(set(symbols)) == len(Verdict)
    body = page.locator("body").evaluate("one => [getComputedStyle(one).color, getComputedStyle(one).backgroundColor]")
    assert contrast(*body) >= 7


def test_compared_run_shows_the_sections_of_compare(look: Open) -> None:
    now = RUN.model_copy(update={"environment": {"versions": {"torch": "2.14"}}})
    page = look(run_page(now, failing(), StoredRun(RUN, passing())))
    assert "1 tap worse than the baseline" in page.locator(".outcome").inner_text()
    section = page.locator("section:has(#changes)").inner_text()
    compared = compare_runs(StoredRun(RUN, passing()), StoredRun(now, failing()))
    for part in comparison_sections(compared):
        assert part.title in section
        assert all(line in section for line in part.lines)
    assert "Worse: 1 tap" in section
    assert "bitwise → diverged" in section
    assert re.search(r"versions\.torch\s+2\.13\s+2\.14", section)
    assert re.search(r"cells appeared\s+1", section)
    same = look(run_page(RUN, passing(), StoredRun(RUN, passing())))
    assert "nothing changed" in same.locator(".outcome").inner_text()


def test_page_of_a_huge_run_is_small_and_filters(look: Open) -> None:
    """20 layers × 40 taps × 4 dtypes × 12 cases are under 1.5 MB, with the worst in the table."""
    taps = [finding(f"hook_{tap}") for tap in range(40)]
    wrong = finding("hook_7", Verdict.DIVERGED, 2.0)
    results = [
        result(layer, "attn", dtype, f"case{case}", [wrong if (layer, case) == (9, 5) else tap for tap in taps])
        for layer, dtype, case in product(range(20), ("float64", "float32", "bfloat16", "float16"), range(12))
    ]
    report = run_page(RUN, results)
    assert len(report.encode()) < 1_500_000
    page = look(report)
    assert page.locator("#finding-table tbody tr").count() == MOST_FINDINGS
    assert "the worst 1,000 of 38,400" in page.locator("section:has(#findings)").inner_text()
    assert len(shown_rows(page)) == 100
    page.get_by_role("button", name="Show all").click()
    assert len(shown_rows(page)) == MOST_FINDINGS
    page.locator("#map-filters select").nth(1).select_option("case5")
    assert square(page, "attn.hook_7", "9").inner_text() == "×"
    assert square(page, "attn.hook_7", "case4").inner_text() == ""


def test_log_scale_has_places_for_zero_and_infinity() -> None:
    scale = LogScale.over([0.0, 0.01, 1.0], start=0, end=126)
    assert [scale.place(figure) for figure in (0.0, 0.01, 1.0)] == [0, 26, 126]
    assert scale.ticks() == [(0, "0"), (26, "0.01"), (76, "0.1"), (126, "1")]
    upward = LogScale.over([1e-12, 1e-2, float("inf")], start=200, end=0)
    assert upward.place(1e-12) == 200
    assert upward.place(1e-2) == 26
    assert upward.ticks()[-1] == (0, "∞")
    assert "10⁻¹²" in dict(map(reversed, upward.ticks()))


def test_charts_are_complete_svg_documents() -> None:
    lines = line_chart([Series("a <b>", ((1, 0.0), (8, 2.0)))], title="t", x_label="n", limit=1.0)
    pairs = pair_chart(
        [ErrorPair("tap", "s", 1.0, 0.5), ErrorPair("other", "z", 0.0, 0.5)], title="t", x_label="r", limit=1.0
    )
    marks = [len(ET.fromstring(chart).findall(".//*[@class='mark']")) for chart in (lines, pairs)]
    assert marks == [2, 2]
    assert "a <b>, 8: 2" in [title.text for title in ET.fromstring(lines).iter() if title.tag.endswith("title")]


def test_report_command_writes_the_page(cli: Cli, tmp_path: Path) -> None:
    a_run_folder(tmp_path / "run", *failing(), run=RUN).close()
    done = cli("report", "run", "--format", "html", "--output", "page.html", "--baseline", "run")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "2 faults · nothing changed" in page
    missing = cli("report", "elsewhere")
    assert missing.returncode == 2
    assert "holds no run" in missing.stderr


def test_output_of_a_notebook_fits_and_leaves_the_rest_alone(look: Open) -> None:
    outside = "<p>text</p><table><tr><td>a cell</td></tr></table>"
    output = run_output(RUN, failing(), len(failing()))
    plain = look(f"<!doctype html><meta charset=utf-8>{outside}", viewport={"width": 700, "height": 900})
    style = "node => JSON.stringify(Object.values(getComputedStyle(node)))"
    before = [plain.locator(name).first.evaluate(style) for name in ("p", "td")]
    page = look(f"<!doctype html><meta charset=utf-8>{outside}{output}", viewport={"width": 700, "height": 900})
    assert [page.locator(name).first.evaluate(style) for name in ("p", "td")] == before
    expect(page.locator(".cgverify .failures li").first).to_contain_text("diverged")
    square = page.locator(".cgverify td.v7").first
    assert square.evaluate("node => getComputedStyle(node).backgroundColor") == "rgb(184, 58, 0)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
