"""`cgverify compare`, `report` and `baseline accept`: output, files and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command_line import command
from made_records import ENVIRONMENT, a_finding, a_result, a_run, a_run_folder
from typer.testing import CliRunner

from cgverify.cli.app import app
from cgverify.common.records import CellResult, Verdict

Invoke = Callable[..., Any]

GATED = """
from cgverify.bridge import CodeGenAttentionBridge

class Bridge(CodeGenAttentionBridge):
    faulty = None

    def _scores(self, query, key, mask):
        if self._layer_idx == self.faulty:
            query = query.float() * 1.0001
        return super()._scores(query, key, mask)
"""
"""A bridge whose scores can be made wrong in one layer."""

SHOWN_AS = {"baseline": "junit", "again": "markdown", "faulty": "github", "threads": "json"}
"""The format that each run prints to stdout."""


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run cgverify in this process, in an empty folder, with a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def kept(name: str, *results: CellResult, **run: object) -> str:
    a_run_folder(Path(name), *results, run=a_run(**run)).close()
    return name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Return runs on two layers of codegen-nano: two equal ones, one with a fault in layer 1, one with two threads."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "gated.py").write_text(GATED)
    made = {name: folder / name for name in SHOWN_AS}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        import gated  # type: ignore[import-not-found]

        for name, path in made.items():
            gated.Bridge.faulty = 1 if name == "faulty" else None
            arguments = (
                *("all-components", "--model", "codegen-nano", "--layers", "0,1", "--component", "attn", "-q"),
                *("--case", "default,decode", "--dtype", "float32,bfloat16", "--bridge", "gated:Bridge"),
                *("--threads", "2" if name == "threads" else "1", "--output", str(path), "--format", SHOWN_AS[name]),
            )
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == (1 if name == "faulty" else 0), done.output
            path.with_suffix(".txt").write_text(done.stdout)
    yield made
    os.environ.pop("THP_MEM_ALLOC_ENABLE", None)


def test_equal_runs_pass_the_gate(invoke: Invoke, runs: dict[str, Path]) -> None:
    everything = "worse,diverged,missing-cells,r:1.01x"
    done = invoke("compare", runs["baseline"], runs["again"], "--fail-on", everything)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("No change: 8 cells and ")


def test_fault_in_one_layer_fails_the_gate_and_is_named(invoke: Invoke, runs: dict[str, Path]) -> None:
    done = invoke("compare", runs["baseline"], runs["faulty"])
    assert done.exit_code == 1
    assert done.stdout.startswith("Regression: 8 cells")
    worse = done.stdout.split("Worse: ")[1].splitlines()
    assert worse[1].startswith("  blocks.1.attn, gated:Bridge in float32, case default: hook_attn_scores (scores) ")
    assert "bitwise → diverged" in worse[1]
    assert "all in layer 1)" in worse[1]
    assert "blocks.0" not in done.stdout
    back = invoke("compare", runs["faulty"], runs["baseline"])
    assert back.exit_code == 0
    assert "Better: " in back.stdout
    annotated = invoke("compare", runs["baseline"], runs["faulty"], "--format", "github").stdout.splitlines()
    assert annotated[0].startswith("::error title=regression::")
    assert annotated[1].startswith("::error title=blocks.1.attn%3A bitwise → diverged::blocks.1.attn, ")


def test_two_dtypes_of_a_run_are_compared(invoke: Invoke, runs: dict[str, Path]) -> None:
    arguments = ("compare", "--across", "dtype", "float32", "bfloat16", runs["baseline"])
    frame = pd.read_csv(StringIO(invoke(*arguments, "--format", "csv").stdout)).set_index("tap")
    assert (frame.loc["hook_q", "ratio"] > 100).all(), "bfloat16 has 16 bits fewer"
    assert (frame.loc["hook_q", "bits_second"] < frame.loc["hook_q", "bits_first"] - 10).all()
    compared = json.loads(invoke(*arguments, "--format", "json").stdout)
    assert (compared["cells"], compared["only_first"], compared["only_second"]) == (4, 0, 0)
    assert {each["error"] for each in compared["first_differences"]} == {"project_q"}
    shown = invoke(*arguments)
    assert shown.exit_code == 0
    assert "dtype: float32 and bfloat16, 4 cells of each" in shown.stdout
    assert "codegen-nano · gated:Bridge · cpu · rotary_dim 16: where the sides part" in shown.stdout


def test_runs_with_other_thread_counts_are_compared(invoke: Invoke, runs: dict[str, Path]) -> None:
    compared = invoke("compare", "--across", "run", runs["baseline"], runs["threads"], "--format", "json")
    taps = json.loads(compared.stdout)["taps"]
    assert {tap["verdict_second"] for tap in taps} <= {"bitwise", "ulp", "bounded"}
    assert json.loads(compared.stdout)["cells"] == 8
    differs = invoke("compare", runs["baseline"], runs["threads"], "--fail-on", "diverged")
    assert differs.exit_code == 0
    assert "numerics.threads" in differs.stdout
    assert "equal machine" not in differs.stdout


def test_report_repeats_the_output_byte_for_byte(invoke: Invoke, runs: dict[str, Path]) -> None:
    for name, format in SHOWN_AS.items():
        assert invoke("report", runs[name], "--format", format).stdout == runs[name].with_suffix(".txt").read_text()
    shown = invoke("report", runs["faulty"], "--format", "csv")
    assert shown.exit_code == 0
    assert shown.stdout == (runs["faulty"] / "findings.csv").read_text()
    assert invoke("report", runs["faulty"], "--format", "csv", "--output", "again.csv").stdout == ""
    assert Path("again.csv").read_bytes() == (runs["faulty"] / "findings.csv").read_bytes()


def test_report_file_is_written_whole_or_not_at_all(invoke: Invoke) -> None:
    kept("one", a_result())
    Path("report").write_text("as it was")
    Path("link").symlink_to("report")
    limited = [
        "sh",
        "-c",
        'ulimit -f 1; exec "$@"',
        "sh",
        *command("report", "one", "--format", "html", "--output", "link"),
    ]
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    full = subprocess.run(limited, env=unmeasured, capture_output=True, text=True, check=False)
    assert (full.returncode, full.stderr) == (2, "Error: Cannot write link: File too large. Give another --output.\n")
    assert Path("report").read_text() == "as it was"
    assert invoke("report", "one", "--format", "csv", "--output", "link").exit_code == 0
    assert Path("report").read_text().startswith("model,")
    assert Path("link").is_symlink()
    assert sorted(os.listdir()) == ["link", "one", "report"]
    assert invoke("report", "one", "--output", os.devnull).exit_code == 0
    assert Path(os.devnull).is_char_device()


def test_baseline_from_the_environment_is_ignored_if_unusable(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    kept("one", a_result())
    kept("two", a_result(a_finding(verdict=Verdict.DIVERGED)))
    monkeypatch.setenv("CGVERIFY_BASELINE", "one")
    assert invoke("report", "two").exit_code == 0
    assert invoke("report", "two", "--by", "layer").exit_code == 0
    assert "bitwise → diverged" in invoke("report", "two", "--format", "markdown").stdout


def test_report_shows_changes_since_a_baseline(invoke: Invoke, runs: dict[str, Path]) -> None:
    shown = invoke("report", runs["faulty"], "--format", "markdown", "--baseline", runs["baseline"])
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("## codegen-nano: parity failure\n")
    assert "bitwise → diverged" in shown.stdout.split("### Worse: ")[1]


def test_report_by_layer_has_a_row_per_layer(invoke: Invoke, runs: dict[str, Path]) -> None:
    shown = invoke("report", runs["faulty"], "--by", "layer").stdout
    rows = [line.split()[:3:2] for line in shown.splitlines() if line.startswith((" 0", " 1"))]
    assert [layer for layer, _ in rows] == ["0", "1"]
    assert float(rows[0][1]) < 1 < float(rows[1][1])


def test_baseline_is_accepted_and_renewed(invoke: Invoke, runs: dict[str, Path]) -> None:
    first = invoke("baseline", "accept", runs["baseline"])
    assert first.exit_code == 0, first.output
    folder = Path("reports/codegen-nano-cpu")
    assert {path.name for path in folder.iterdir()} == {"run.json", "findings.jsonl.gz", "summary.csv"}
    assert (folder / "summary.csv").read_bytes() == (runs["baseline"] / "summary.csv").read_bytes()
    assert first.stdout == ""
    assert invoke("compare", folder, runs["again"]).exit_code == 0
    assert invoke("compare", folder, runs["faulty"]).exit_code == 1
    renewed = invoke("baseline", "accept", runs["faulty"])
    assert renewed.exit_code == 0
    assert "blocks.1.attn" in renewed.stdout, "accepting reports the changes"
    assert "egression" not in renewed.stdout
    assert invoke("compare", folder, runs["faulty"]).exit_code == 0


def test_damaged_baseline_is_replaced(invoke: Invoke) -> None:
    run = kept("run", a_result())
    assert invoke("baseline", "accept", run, "kept").exit_code == 0
    packed = Path("reports/kept/findings.jsonl.gz")
    good = packed.read_bytes()
    packed.write_bytes(good[:12] + good[:-12])
    done = invoke("baseline", "accept", run, "kept")
    assert done.exit_code == 0, done.output
    assert (
        "The run is not compared with the baseline that it replaces: Cannot read the baseline in reports/kept"
        in done.stderr
    )
    assert packed.read_bytes() == good


def test_comparison_as_json_and_csv_lists_every_change(invoke: Invoke) -> None:
    before = kept("before", a_result(), a_result(layer=1), a_result(layer=2))
    found = a_finding(verdict=Verdict.DIVERGED, r=float("inf"), message="mix is off")
    after = kept(
        "after", a_result(found), a_result(layer=1), a_result(layer=3), environment={**ENVIRONMENT, "machine": {}}
    )
    compared = json.loads(invoke("compare", before, after, "--format", "json").stdout)
    assert compared["ok"] is False
    assert compared["regressions"] == ["1 verdict got worse", "1 cell is no longer compared"]
    assert compared["times"] is None
    assert [(row["change"], row["component"], row["message"]) for row in compared["changes"]] == [
        ("worse", "blocks.0.attn", "mix is off"),
        ("grown", "blocks.0.attn", "mix is off"),
        ("appeared", "blocks.3.attn", ""),
        ("vanished", "blocks.2.attn", ""),
    ]
    assert compared["changes"][0]["r_after"] == "Infinity"
    frame = pd.read_csv(StringIO(invoke("compare", before, after, "--format", "csv").stdout))
    assert frame["change"].tolist() == ["worse", "grown", "appeared", "vanished"]


def test_annotations_name_the_versions_that_differ(invoke: Invoke) -> None:
    newer = {**ENVIRONMENT, "versions": {"torch": "2.13.0", "transformers": "5.24.0rc1"}}
    before, after = kept("before", a_result()), kept("after", a_result(), environment=newer)
    assert invoke("compare", before, after, "--format", "github").stdout == (
        "::notice title=cgverify m::No change: 1 cell and 1 tap compared with the baseline, "
        "transformers 5.23.0 → 5.24.0rc1\n"
    )


def test_new_kinds_of_cells_are_counted_not_listed(invoke: Invoke) -> None:
    before = kept("before", *(a_result(layer=layer) for layer in range(20)))
    gained = (a_result(layer=layer, case=case) for layer in range(20) for case in ("default", "text", "autocast"))
    done = invoke("compare", before, kept("after", *gained))
    assert done.exit_code == 0
    assert "Appeared: 40 cells\n  case text: 20 cells\n  case autocast: 20 cells\n" in done.stdout
    assert len(done.stdout.splitlines()) < 10


def test_runs_without_a_common_cell_exit_with_5(invoke: Invoke) -> None:
    before, after = kept("before", a_result()), kept("after", a_result(dtype="float16"))
    done = invoke("compare", before, after, "--fail-on", "worse")
    assert done.exit_code == 5
    assert "have no cell in common" in done.stderr
    assert invoke("compare", "--across", "run", before, after).exit_code == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", "one"), "takes a BASELINE and a RUN, but 1 folders are given"),
        (("compare", "one", "nowhere"), "nowhere holds no run"),
        (("compare", "one", "one", "--fail-on", "wors"), "did you mean 'worse'"),
        (("compare", "one", "one", "--fail-on", "r:0.5x"), "write r:2x"),
        (("compare", "one", "one", "--format", "junit"), "Unknown --format 'junit'"),
        (("compare", "--across", "dtyp", "a", "b", "one"), "did you mean 'dtype'"),
        (("compare", "--across", "dtype", "float32", "one"), "takes two values and one or two run folders"),
        (("compare", "--across", "dtype", "float32", "bfloat16", "one"), "Unknown dtype of the run 'bfloat16'"),
        (("compare", "--across", "run", "one"), "takes two run folders"),
        (("compare", "--across", "run", "one", "one", "--fail-on", "worse"), "--fail-on needs a baseline"),
        (("compare", "--across", "run", "one", "one", "--format", "github"), "Unknown --format 'github'"),
        (("report", "nowhere"), "holds no run"),
        (("report", "one", "--by", "dtpye"), "did you mean 'dtype'"),
        (("report", "one", "--by", "dtype", "--format", "junit"), "--by cannot be shown as junit"),
        (("report", "one", "--format", "xml"), "Unknown --format 'xml'"),
        (("report", "one", "--baseline", "one"), "--baseline needs --format markdown or html"),
        (("report", "one", "--format", "markdown", "--baseline", "nowhere"), "nowhere holds no run"),
        (("report", "one", "--output", "no/where"), "Cannot write no/where"),
        (("baseline", "accept", "nowhere"), "holds no run"),
        (("baseline", "accept", "one", "run", "--reports", "."), "exists and is not a baseline"),
        (("baseline", "accept", "two"), "is of 2 devices"),
        (("baseline", "accept", "one", "--reports", "/proc/nowhere"), "Cannot write"),
    ],
)
def test_bad_input_is_reported_in_one_sentence(arguments: tuple[str, ...], message: str, invoke: Invoke) -> None:
    kept("one", a_result())
    kept("run", a_result())
    kept("two", a_result(), a_result(device="cuda"))
    done = invoke(*arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
