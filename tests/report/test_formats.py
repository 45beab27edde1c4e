"""A run in every format, with messages that contain anything."""

from __future__ import annotations

import json
import re
from io import StringIO

import pandas as pd
import pytest
from command_line import ROOT
from junitparser import Error, Failure, JUnitXml, Skipped
from made_records import a_finding, a_result, a_run

from cgverify.common.records import CellResult, Verdict
from cgverify.report import render as limited
from cgverify.report.across import COLUMNS as ACROSS_COLUMNS
from cgverify.report.comparison import COLUMNS as COMPARISON_COLUMNS
from cgverify.report.formats import FORMATS, PIVOT_FORMATS, PIVOTS, render_run
from cgverify.report.frames import CELL, FINDING, summary_frame
from cgverify.report.pivot import pivot_report
from cgverify.report.render import LIMIT, render, terminal
from cgverify.report.run import by_head
from cgverify.report.sections import Section

AWKWARD = 'raised <a> & "b" | 100%\r\n::error::no, `x` *y* \x1b[31mred\x00, and: more'


def awkward() -> list[CellResult]:
    return [
        a_result(a_finding(), layer=0),
        a_result(a_finding(verdict=Verdict.DIVERGED, r=3.0, message=AWKWARD), a_finding("hook_out", "output"), layer=1),
        a_result(a_finding("", "", Verdict.ERROR, r=None, message="out of memory"), layer=2),
        a_result(a_finding("", "", Verdict.UNSUPPORTED, r=None, message="refused"), layer=3),
        a_result(a_finding(), a_finding("", "", Verdict.UNSUPPORTED, step="token 1", r=None), layer=4),
    ]


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_renders_awkward_and_empty_runs(format: str) -> None:
    for results in (awkward(), []):
        text = render_run(format, a_run(), results)
        assert text.endswith("\n")
        text.encode()


@pytest.mark.parametrize("format", ["table", "markdown", "github", "junit", "html"])
def test_control_characters_of_a_run_are_escaped(format: str) -> None:
    unfit = "\x1b[31m\x07" if format == "junit" else "\x1b[31m\x07\x9b\u202e"  # XML allows the others
    failing = a_finding(f"hook_{unfit}", f"stage{unfit}", Verdict.DIVERGED, r=3.0, message=AWKWARD + unfit, at=unfit)
    results = [
        a_result(failing, a_finding(message=unfit), candidate=f"c{unfit}", silent_hooks=(unfit,)),
        a_result(a_finding("", "", Verdict.UNSUPPORTED, r=None, message=unfit), layer=1, model=f"m{unfit}"),
    ]
    known = a_run().checkpoints
    known = (*known, known[0].model_copy(update={"name": f"m{unfit}"}))
    for command in ("all-components", "attention"):
        text = render_run(format, a_run(command=command, checkpoints=known), results)
        assert "blocks.0.attn" in text
        assert not set("\x1b\x07\x9b\u202e") & set(text)


def test_control_characters_of_a_section_are_escaped() -> None:
    section = Section("t\x1b", ["l\x1b"], columns=["c\x1b"], rows=[["r\x1b"]])
    assert terminal([section]).count(r"\x1b") == 4


def test_junit_distinguishes_failures_errors_and_skips() -> None:
    report = JUnitXml.fromstring(render_run("junit", a_run(), awkward()).encode())
    (suite,) = report
    assert (report.tests, report.failures, report.errors, report.skipped) == (5, 1, 1, 1)
    assert suite.name == "m · c · float32 · cpu · rotary_dim 8"
    kinds = [type(case.result[0]) if case.result else None for case in suite]
    assert kinds == [None, Failure, Error, Skipped, None]
    cases = list(suite)
    assert cases[1].name == "blocks.1.attn[default-seed0-2x8]"
    assert cases[1].result[0].type == "mix"
    assert 'raised <a> & "b" | 100%' in cases[1].result[0].message
    assert "\ufffd[31mred\ufffd" in cases[1].result[0].text
    assert cases[2].result[0].message == "out of memory"


def test_annotations_are_the_worst_ten_on_one_line_each() -> None:
    results = [
        a_result(a_finding(f"hook_{layer}", verdict=Verdict.DIVERGED, r=1.5 + layer, message=AWKWARD), layer=layer)
        for layer in range(30)
    ]
    results.append(a_result(a_finding("boot", "boot", Verdict.DIVERGED, r=None, message="it raised"), layer=40))
    lines = render_run("github", a_run(), results).splitlines()
    errors = [line for line in lines if line.startswith("::error ")]
    assert len(errors) == 10
    assert len(lines) == 11
    assert errors[0].startswith(
        "::error title=blocks.40.attn%3A diverged::blocks.40.attn, c in float32, case default: it"
    )
    assert errors[1].startswith("::error title=blocks.29.attn%3A diverged::")
    assert "100%25%0D%0A::error::no" in errors[1]
    assert "%0Acgverify all-components --model m --component blocks.29.attn" in errors[1]
    assert lines[-1].startswith("::notice title=cgverify m::31 cells")
    assert "the worst 10 of 31 faults are shown" in lines[-1]


def test_annotation_of_a_passing_run_is_one_notice() -> None:
    assert (
        render_run("github", a_run(), [a_result()]) == "::notice title=cgverify m::1 cell, 1 tap compared: 1 bitwise\n"
    )


def test_markdown_of_many_awkward_cells_fits_githubs_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a smaller limit: each section takes 15 ms, and a million bytes are thousands of sections."""
    assert LIMIT < 1 << 20
    monkeypatch.setattr(limited, "LIMIT", 40_000)
    message = "<details> | ` * \x1b " * 200
    results = [
        a_result(
            a_finding(f"hook_{number}", verdict=Verdict.DIVERGED, r=2.0 + number, message=message),
            candidate=f"module_{number % 100}:Bridge|`x`",
            layer=number,
        )
        for number in range(2000)
    ]
    text = render_run("markdown", a_run(), results)
    assert len(text.encode()) < 40_000
    assert len(text.encode()) > 20_000, "what fits is shown"
    assert "2000 diverged" in text
    assert "1,980 more faults" in text
    assert "sections left out" in text
    assert "<details>" not in text.replace(r"\<details", "")


def test_markdown_table_rows_have_equal_numbers_of_fields() -> None:
    text = render_run(
        "markdown", a_run(), [a_result(a_finding(verdict=Verdict.DIVERGED, at="a | b", message=AWKWARD[:40]))]
    )
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert len(table) == 3
    assert "❌ diverged" in table[2]


def test_cells_that_differ_in_any_field_are_all_counted() -> None:
    others: list[dict[str, object]] = [
        {},
        *({name: "other"} for name in ("model", "weights", "candidate", "dtype", "device", "attention", "prompt")),
        *({name: 1} for name in ("rotary_dim", "seed", "batch_size", "seq_len")),
    ]
    results = [a_result(a_finding(), a_finding("hook_out"), **cell) for cell in others]
    assert summary_frame(results)["cells"].sum() == len(others)
    by_layer = pd.read_csv(StringIO(render("csv", pivot_report(a_run(), results, "layer"))))
    assert by_layer["cells"].tolist() == [len(others)]


def test_each_model_has_a_section() -> None:
    results = [a_result(model=model) for model in ("m", "n")]
    text = render_run("markdown", a_run(), results)
    assert [line for line in text.splitlines() if "· c ·" in line] == [
        f"### {model} · c · float32 · cpu · rotary\\_dim 8 · random (seed 0)" for model in ("m", "n")
    ]
    heads = [a_result(a_finding(bits_by_head=(1.0,), errors_by_head=(0.1,)), model=model) for model in ("m", "n")]
    assert [section.title.split(" · ")[0] for section in by_head(a_run(), heads)] == [
        "heads of m",
        "heads of n",
    ]


@pytest.mark.parametrize("by", PIVOTS)
@pytest.mark.parametrize("format", PIVOT_FORMATS)
def test_pivot_shows_every_value_of_an_axis(by: str, format: str) -> None:
    values: dict[str, tuple[object, object]] = {
        "dtype": ("float32", "bfloat16"),
        "device": ("cpu", "cuda"),
        "case": ("default", "stress"),
        "candidate": ("c", "d"),
        "rotary_dim": (8, "none"),
        "attention": ("eager", "sdpa"),
        "layer": (0, 1),
    }
    results = [
        a_result(a_finding(verdict=verdict, r=r, bits=bits), kind=kind, **{by: value})
        for kind in ("attn", "mlp")
        for value, verdict, r, bits in zip(
            values[by], (Verdict.BITWISE, Verdict.BOUNDED), (0.125, 0.25), (20.0, 6.0), strict=True
        )
    ]
    text = render(format, pivot_report(a_run(), results, by))
    if format == "csv":
        frame = pd.read_csv(StringIO(text), keep_default_na=False)
        assert frame[["kind", by]].astype(str).drop_duplicates().shape[0] == 4
        assert frame["bits"].tolist() == [20.0, 6.0, 20.0, 6.0]
        assert frame["worst_verdict"].tolist() == ["bitwise", "bounded"] * 2
    elif format == "json":
        assert [row["r"] for row in json.loads(text)] == [0.125, 0.25] * 2
    else:
        entries = [line for line in text.splitlines() if "bitwise 0.125" in line]
        assert len(entries) == (1 if by == "layer" else 2)
        assert all(("bounded 0.25" in line) == (by != "layer") for line in entries)


def documented(heading: str) -> list[str]:
    """Return the names in the first column of the table under a heading of docs/findings.md."""
    text = (ROOT / "docs" / "findings.md").read_text()
    section = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


@pytest.mark.parametrize(
    ("heading", "columns"),
    [
        ("`findings.csv`", [*CELL, *FINDING]),
        ("`summary.csv`", list(summary_frame([a_result()]).columns)),
        ("`compare --format csv`", COMPARISON_COLUMNS),
        ("`compare --across --format csv`", ACROSS_COLUMNS),
    ],
)
def test_documented_columns_are_the_columns(heading: str, columns: list[str]) -> None:
    names = documented(heading)
    assert sorted(names) == sorted(set(names))
    new = [column for column in columns if heading == "`findings.csv`" or column not in (*CELL, *FINDING)]
    assert set(names) == set(new)
