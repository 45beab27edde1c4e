"""A benchmark compared with an earlier one, and the limit of `--fail-over`."""

from __future__ import annotations

from pathlib import Path

import pytest
from hand_made_bench import measured, run

from cgverify.bench.baseline import changes, over, read, regressions
from cgverify.bench.records import BenchRun
from cgverify.common.errors import RunFolderError, UsageError


@pytest.mark.parametrize(
    ("then", "now", "expected"),
    [(1.0, 1.1, "slower"), (1.1, 1.0, "faster"), (1.0, 1.015, "no change seen"), (1.0, None, "cannot be compared")],
)
def test_change_needs_intervals_that_do_not_overlap(then: float, now: float | None, expected: str) -> None:
    (change,) = changes(run(measured(then)), run(measured(now, message="" if now else "raised")))
    assert change.change == expected


def test_more_memory_is_larger_not_slower() -> None:
    (change,) = changes(run(measured(1.0, unit="B")), run(measured(1.5, unit="B")))
    assert change.change == "larger"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"machine": {"processor": "another", "processors": 2}}, "processor one, here another"),
        ({"threads": 1}, "threads 2, here 1"),
        ({"model": "codegen-350M"}, "codegen-nano, not of codegen-350M"),
    ],
)
def test_baseline_of_another_setting_raises(other: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        changes(run(measured(1.0)), run(measured(1.0), **other))
    assert str(refused.value).count(". ") == 0


def test_baseline_without_common_points_raises() -> None:
    with pytest.raises(UsageError, match="nothing of what was measured now"):
        changes(run(measured(1.0)), run(measured(1.0, seq_len=16)))


def test_baseline_of_other_versions_is_compared() -> None:
    later = run(measured(1.2))
    later.environment["versions"] = {"torch": "3"}
    assert len(changes(run(measured(1.0)), later)) == 1


def test_over_needs_the_whole_interval_over_the_limit() -> None:
    rows = [measured(1.04, seq_len=1), measured(1.055, seq_len=2), measured(1.2, seq_len=3)]
    (sentence,) = over(rows, 1.05)
    assert sentence == "cgverify, attn prefill 2x3 float32 cpu: 1.190 to 1.210 times the reference, over 1.05"
    assert "raised" in over([measured(None, message="raised ValueError: no")], 1.05)[0]


def test_regression_is_growth_since_the_baseline() -> None:
    before = run(
        measured(1.5, seq_len=1), measured(0.5, seq_len=2), measured(0.9, seq_len=3), measured(None, message="no")
    )
    now = run(
        measured(1.5, seq_len=1),  # slow, but as slow as before
        measured(0.6, seq_len=2),  # faster than the reference, but slower than before
        measured(None, seq_len=3, message="raised ValueError: no"),
        measured(None, message="no"),
    )
    sentences = regressions(changes(before, now), 1.05)
    assert len(sentences) == 2
    assert "2x2" in sentences[0]
    assert "ratio 0.600, in the baseline 0.500" in sentences[0]
    assert "but the baseline has a figure" in sentences[1]


def test_benchmark_is_read_as_it_was_written(tmp_path: Path) -> None:
    wrote = run(measured(1.0), measured(None, message="raised", seq_len=9))
    (tmp_path / "bench.json").write_text(wrote.model_dump_json())
    assert read(tmp_path) == read(tmp_path / "bench.json") == wrote
    assert isinstance(read(tmp_path), BenchRun)


@pytest.mark.parametrize("text", ["", "{", "{}", '{"measured": 3}', "[1]"])
def test_file_that_is_not_a_benchmark_raises(text: str, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(RunFolderError, match="not a benchmark of cgverify") as raised:
        read(tmp_path)
    assert "\n" not in str(raised.value)
    with pytest.raises(RunFolderError, match="Cannot read"):
        read(tmp_path / "nowhere.json")
