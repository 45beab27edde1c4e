"""A benchmark beside an earlier one, and the gate."""

from __future__ import annotations

from pathlib import Path

import pytest
from hand_made_bench import measured, run

from cgverify.bench.baseline import changes, over, read, regressions
from cgverify.bench.records import BenchRun
from cgverify.common.errors import RunFolderError, UsageError


@pytest.mark.parametrize(
    ("then", "now", "says"),
    [(1.0, 1.1, "slower"), (1.1, 1.0, "faster"), (1.0, 1.015, "no change seen"), (1.0, None, "cannot be compared")],
)
def test_only_intervals_that_do_not_meet_are_a_change(then: float, now: float | None, says: str) -> None:
    (change,) = changes(run(measured(then)), run(measured(now, message="" if now else "raised")))
    assert change.says == says


def test_memory_grows_and_is_not_slower() -> None:
    (change,) = changes(run(measured(1.0, unit="B")), run(measured(1.5, unit="B")))
    assert change.says == "larger"


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"machine": {"processor": "another", "processors": 2}}, "processor one, here another"),
        ({"threads": 1}, "threads 2, here 1"),
        ({"model": "codegen-350M"}, "codegen-nano, not of codegen-350M"),
    ],
)
def test_another_machine_or_model_is_refused_in_one_sentence(other: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError, match=told) as refused:
        changes(run(measured(1.0)), run(measured(1.0), **other))
    assert str(refused.value).count(". ") == 0


def test_nothing_in_common_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing of what was measured now"):
        changes(run(measured(1.0)), run(measured(1.0, seq_len=16)))


def test_other_versions_are_what_a_baseline_is_for() -> None:
    later = run(measured(1.2))
    later.environment["versions"] = {"torch": "3"}
    assert len(changes(run(measured(1.0)), later)) == 1


def test_the_gate_wants_the_whole_interval_over_the_limit() -> None:
    rows = [measured(1.04, seq_len=1), measured(1.055, seq_len=2), measured(1.2, seq_len=3)]
    (sentence,) = over(rows, 1.05)
    assert sentence == "cgverify, attn prefill 2x3 float32 cpu: 1.190 to 1.210 times the reference, over 1.05"
    assert "raised" in over([measured(None, message="raised ValueError: no")], 1.05)[0]


def test_the_gate_beside_a_baseline_is_about_growth() -> None:
    before = run(
        measured(1.5, seq_len=1), measured(0.5, seq_len=2), measured(0.9, seq_len=3), measured(None, message="no")
    )
    now = run(
        measured(1.5, seq_len=1),  # slow, but as slow as before
        measured(0.6, seq_len=2),  # quicker than the reference, but no longer as quick
        measured(None, seq_len=3, message="raised ValueError: no"),
        measured(None, message="no"),
    )
    sentences = regressions(changes(before, now), 1.05)
    assert len(sentences) == 2
    assert "2x2" in sentences[0]
    assert "ratio 0.600, in the baseline 0.500" in sentences[0]
    assert "where the baseline has a figure" in sentences[1]


def test_a_benchmark_survives_its_file(tmp_path: Path) -> None:
    wrote = run(measured(1.0), measured(None, message="raised", seq_len=9))
    (tmp_path / "bench.json").write_text(wrote.model_dump_json())
    assert read(tmp_path) == read(tmp_path / "bench.json") == wrote
    assert isinstance(read(tmp_path), BenchRun)


@pytest.mark.parametrize("text", ["", "{", "{}", '{"measured": 3}', "[1]"])
def test_a_file_that_is_no_benchmark_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(RunFolderError, match="no benchmark of cgverify") as told:
        read(tmp_path)
    assert "\n" not in str(told.value)
    with pytest.raises(RunFolderError, match="Cannot read"):
        read(tmp_path / "nowhere.json")
