"""What a notebook shows of a result, a comparison and a benchmark, as HTML and as figures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import hand_made_bench
import pytest
from made_records import a_finding, a_result, a_run
from rich.console import Console

import cgverify
from cgverify.api import Result
from cgverify.bench.baseline import FILE
from cgverify.common.errors import RunFolderError, UsageError
from cgverify.common.records import CellResult, Verdict
from cgverify.report import progress

HOSTILE = "<script>alert(1)</script>"
TAPS = tuple(f"hook_{number}" for number in range(60))


def whole(verdict: Verdict = Verdict.BITWISE, r: float = 0.25, layers: int = 34) -> Result:
    """Return a result as large as that of codegen-16B, whose first tap has the given verdict in layer 3."""
    results = [
        a_result(
            *(
                a_finding(tap, verdict=verdict, r=r, reference_r=0.1, message=f"{HOSTILE} is wrong")
                if (layer, tap) == (3, TAPS[0])
                else a_finding(tap, r=0.5, reference_r=0.0)
                for tap in TAPS
            ),
            layer=layer,
        )
        for layer in range(layers)
    ]
    return Result(a_run(), tuple(results), None, layers)


@pytest.fixture(scope="module")
def failed() -> Result:
    return whole(Verdict.DIVERGED, float("inf"))


@pytest.fixture(scope="module")
def passed() -> Result:
    return whole()


def test_result_shows_outcome_fault_and_heat_map(failed: Result) -> None:
    shown = failed._repr_html_()
    assert "<b>1 fault</b>" in shown
    assert "blocks.3.attn, c in float32, case default: &lt;script&gt;alert(1)&lt;/script&gt; is wrong." in shown
    assert "cgverify all-components --model m --component blocks.3.attn --case default --bridge c" in shown
    assert shown.count(' title="diverged · r ∞"') == 3, "by layer, dtype and case"
    assert "<script" not in shown
    assert len(shown) < 200_000


def test_result_shows_in_a_terminal_in_one_line(failed: Result) -> None:
    assert repr(failed) == "<Result of m: 34 cells, 2,040 taps compared: 2039 bitwise, 1 diverged>"
    assert "Every tap holds" in whole(layers=1)._repr_html_()


def test_unfinished_result_does_not_look_like_a_pass(passed: Result) -> None:
    shown = Result(passed.run, passed.results, None, 40)._repr_html_()
    assert "Only 34 of 40 cells were verified" in shown
    assert "Every tap holds" not in shown


def test_comparison_shows_what_got_worse(passed: Result, failed: Result) -> None:
    comparison = cgverify.compare_runs(passed, failed)
    assert '<h3 class="bad">Worse: 1 tap</h3>' in comparison._repr_html_()
    assert repr(comparison) == "<RunComparison of m: 34 cells and 2,040 taps compared with the baseline>"


def test_benchmark_shows_charts_and_tables(tmp_path: Path) -> None:
    measured = [hand_made_bench.measured(1.2, seq_len=8), hand_made_bench.measured(1.1, seq_len=16)]
    (tmp_path / FILE).write_text(hand_made_bench.run(*measured).model_dump_json())
    loaded = cgverify.load_bench(tmp_path)
    shown = loaded._repr_html_()
    assert shown.count("<figure>") == 2
    assert "attn prefill 2x16" in shown
    assert repr(loaded) == "<BenchRun of codegen-nano: 2 measurements, 2026-01-01>"
    with pytest.raises(RunFolderError):
        cgverify.load_bench(tmp_path / "nowhere")


def test_figures_show_taps_and_layers(passed: Result, failed: Result) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    by_tap, by_layer = failed.plot().axes
    labels = [label.get_text() for label in by_tap.get_yticklabels()]
    assert len(labels) == 40
    assert f"attn.{TAPS[0]}" in labels
    assert "∞" in [label.get_text() for label in by_tap.get_xticklabels()]
    assert list(by_layer.get_lines()[0].get_xdata()) == list(range(34))
    (axes,) = cgverify.compare_runs(passed, failed).plot().axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"attn {TAPS[0]}, c float32"]
    assert cgverify.compare_runs(passed, passed).plot().axes, "nothing changed"
    assert pyplot.get_fignums() == [], "a notebook would show them twice"


def test_figure_without_matplotlib_says_what_to_install(passed: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(UsageError, match=r"pip install 'cgverify\[plot\]'"):
        passed.plot()


def test_progress_is_shown_in_a_notebook_with_ipywidgets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert progress.notebook() is None, "this is not a notebook"
    monkeypatch.setattr(progress, "Console", partial(Console, force_jupyter=True))
    monkeypatch.setattr(progress, "find_spec", lambda _: None)
    assert progress.notebook() is None
    monkeypatch.setattr(progress, "find_spec", lambda name: name)
    assert progress.notebook() is not None


def test_progress_passes_results_on_in_their_order() -> None:
    given = [a_result(kind="ln1"), a_result(a_finding(verdict=Verdict.DIVERGED))]

    def results() -> Iterator[CellResult]:
        yield from given

    with progress.RunProgress(None, []) as shown:
        assert list(shown.through(results())) == given


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_notebook_of_the_docs_runs_and_shows() -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    path = Path(__file__).parents[2] / "docs" / "verify_in_a_notebook.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    shown = [output.data for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert sum("image/png" in data for data in shown) == 2
    outcomes = ("Every tap holds", "2 faults", "Worse: ")
    assert [any(text in data.get("text/html", "") for data in shown) for text in outcomes] == [True] * 3
