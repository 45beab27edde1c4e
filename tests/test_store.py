"""Run folders: what was finished survives, nothing counts twice."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from cgverify.errors import RunFolderError
from cgverify.records import Cell, CellResult, Finding, Run, Verdict
from cgverify.store import RunFolder, read


def a_run(**environment: object) -> Run:
    return Run(
        created="2026-01-01T00:00:00+00:00",
        command="all-components",
        model="m",
        weights_origin="random",
        weights_digest="d",
        settings={},
        environment={"versions": {"torch": "1"}, "numerics": {"threads": 2}, "machine": {}} | environment,
    )


def a_result(layer: int, r: float = 0.5) -> CellResult:
    cell = Cell(
        model="m",
        weights="d",
        layer=layer,
        kind="attn",
        candidate="c",
        dtype="float32",
        device="cpu",
        rotary_dim=8,
        case="default",
        seed=0,
        batch_size=2,
        seq_len=8,
    )
    finding = Finding(step="forward", tap="hook_z", stage="mix", verdict=Verdict.BOUNDED, r=r, max_abs=math.nan)
    return CellResult(cell=cell, findings=(finding,), seconds=0.1)


def test_what_is_appended_can_be_read_back_with_nan_and_infinity(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", a_run())
    folder.append(a_result(0, r=math.inf))
    run, results = read(tmp_path / "run")
    assert run == folder.run
    assert results[0].cell == a_result(0).cell
    assert results[0].findings[0].r == math.inf
    assert math.isnan(results[0].findings[0].max_abs or 0.0)


def test_a_line_is_on_disk_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", a_run())
    folder.append(a_result(0))
    assert len((tmp_path / "run" / "findings.jsonl").read_text().splitlines()) == 1


def test_an_existing_folder_is_refused(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", a_run()).close()
    with pytest.raises(RunFolderError, match="--resume"):
        RunFolder.create(tmp_path / "run", a_run())


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, a_run()).close()


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="Cannot write"):
        RunFolder.create(tmp_path / "file" / "run", a_run())


def test_a_torn_last_line_is_cut_off_and_the_rest_kept(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", a_run())
    for layer in range(3):
        folder.append(a_result(layer))
    folder.close()
    path = tmp_path / "run" / "findings.jsonl"
    path.write_bytes(path.read_bytes()[:-25])
    resumed, finished = RunFolder.resume(tmp_path / "run", a_run())
    assert [result.cell.layer for result in finished] == [0, 1]
    resumed.append(a_result(2))
    assert [result.cell.layer for result in read(tmp_path / "run")[1]] == [0, 1, 2]


def test_a_cell_that_was_written_twice_counts_once(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", a_run())
    folder.append(a_result(0))
    folder.append(a_result(0))
    assert len(read(tmp_path / "run")[1]) == 1


def test_damage_in_the_middle_is_told(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", a_run())
    folder.append(a_result(0))
    path = tmp_path / "run" / "findings.jsonl"
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(RunFolderError, match="Line 1"):
        read(tmp_path / "run")


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no run"):
        RunFolder.resume(tmp_path, a_run())


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"numerics": {"threads": 1}}, "threads 2, now 1"),
        ({"versions": {"torch": "2"}}, "torch 1, now 2"),
    ],
)
def test_other_threads_or_versions_are_refused(tmp_path: Path, changed: dict[str, object], told: str) -> None:
    RunFolder.create(tmp_path / "run", a_run()).close()
    with pytest.raises(RunFolderError, match=told):
        RunFolder.resume(tmp_path / "run", a_run(**changed))


def test_other_options_or_candidates_are_refused(tmp_path: Path) -> None:
    before = a_run().model_copy(update={"settings": {"dtypes": ("float32",), "candidate_sources": {"x:Y": "abc"}}})
    RunFolder.create(tmp_path / "run", before).close()
    again, finished = RunFolder.resume(tmp_path / "run", before)
    assert finished == []
    again.close()
    for option, value in (("dtypes", ["float16"]), ("candidate_sources", {"x:Y": "abd"})):
        now = before.model_copy(update={"settings": {**before.settings, option: value}})
        with pytest.raises(RunFolderError, match=f"was made with {option}"):
            RunFolder.resume(tmp_path / "run", now)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", a_run()).close()
    with pytest.raises(RunFolderError, match="other weights"):
        RunFolder.resume(tmp_path / "run", a_run().model_copy(update={"weights_digest": "e"}))
