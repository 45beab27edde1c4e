"""Baselines are small, have equal bytes for equal runs, and are refused if nothing could be compared with them."""

from __future__ import annotations

import math
import os
import resource
from pathlib import Path

import pytest
from command_line import ROOT
from made_records import a_finding, a_result, a_run, a_run_folder

from cgverify.common.errors import RunFolderError
from cgverify.common.records import CellResult, Verdict
from cgverify.runs.baseline import PACKED, StoredRun, accept, load_stored_run, require_finished
from cgverify.runs.comparison import compare_runs
from cgverify.runs.folder import RunFolder
from cgverify.runs.reading import PlannedCell

PUBLISHED = sorted(path.parent for path in (ROOT / "reports").glob(f"*/{PACKED}"))


def a_stored(*results: CellResult) -> StoredRun:
    return StoredRun(a_run(), results or (a_result(a_finding(r=math.inf, max_abs=math.nan), seconds=0.12345),))


def test_accepted_run_is_read_without_its_tensors(tmp_path: Path) -> None:
    finding = a_finding(verdict=Verdict.DIVERGED, r=math.inf, tensors="tensors/x.safetensors", message="off")
    stored = a_stored(a_result(finding, silent_hooks=("hook_result",), seconds=0.12345))
    accept(stored, tmp_path / "m-cpu", "")
    again = load_stored_run(tmp_path / "m-cpu")
    assert again.run == stored.run
    (result,) = again.results
    assert result.seconds == 0.123
    assert result.silent_hooks == ("hook_result",)
    assert result.findings == (finding.model_copy(update={"tensors": ""}),)


def test_equal_runs_become_equal_bytes_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept(a_stored(), tmp_path / "a", "")
    monkeypatch.setattr("time.time", lambda: 2e9)
    accept(a_stored(), tmp_path / "b", "")
    assert (tmp_path / "a" / PACKED).read_bytes() == (tmp_path / "b" / PACKED).read_bytes()


def test_results_are_in_plan_order_in_folder_and_baseline(tmp_path: Path) -> None:
    results = [a_result(layer=layer) for layer in (2, 0, 1)]
    plan = [PlannedCell(place=place, cell=result.cell) for place, result in enumerate(results)]
    folder = RunFolder.create(tmp_path / "run", a_run(), plan)
    for result in (results[1], results[0], results[2]):
        folder.append(result)
    folder.close()
    accept(load_stored_run(tmp_path / "run"), tmp_path / "m-cpu", "")
    assert load_stored_run(tmp_path / "m-cpu") == load_stored_run(tmp_path / "run")
    assert [result.cell.layer for result in load_stored_run(tmp_path / "m-cpu").results] == [2, 0, 1]
    assert compare_runs(tmp_path / "m-cpu", str(tmp_path / "run")).cells == 3


@pytest.mark.parametrize(
    ("verdict", "message"), [(Verdict.ERROR, "could not be run"), (Verdict.UNSUPPORTED, "compared nothing")]
)
def test_run_that_compared_nothing_is_refused(verdict: Verdict, message: str, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=message):
        accept(a_stored(a_result(a_finding("", "", verdict, r=None))), tmp_path / "m-cpu", "")
    assert not (tmp_path / "m-cpu").exists()


def test_unfinished_run_is_refused(tmp_path: Path) -> None:
    plan = [PlannedCell(place=layer, cell=a_result(layer=layer).cell) for layer in range(3)]
    folder = RunFolder.create(tmp_path / "run", a_run(), plan)
    folder.append(a_result())
    folder.close()
    with pytest.raises(RunFolderError, match=r"2 cells of .* are still to be run"):
        require_finished(tmp_path / "run")


def test_run_folder_is_never_overwritten(tmp_path: Path) -> None:
    a_run_folder(tmp_path / "run").close()
    with pytest.raises(RunFolderError, match="is not a baseline"):
        accept(a_stored(), tmp_path / "run", "")


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_baseline_is_reported(damage: str, tmp_path: Path) -> None:
    accept(a_stored(), tmp_path / "m-cpu", "")
    packed = tmp_path / "m-cpu" / PACKED
    if damage == "truncated":
        os.truncate(packed, 30)
    else:
        content = bytearray(packed.read_bytes())
        content[12:40] = bytes(byte ^ 0xFF for byte in content[12:40])
        packed.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"Cannot read the baseline .* Accept it again"):
        load_stored_run(tmp_path / "m-cpu")


def test_error_in_a_baseline_names_its_own_folder(tmp_path: Path) -> None:
    accept(a_stored(), tmp_path / "m-cpu", "")
    (tmp_path / "m-cpu" / "run.json").write_text("{")
    with pytest.raises(RunFolderError, match=f"{tmp_path / 'm-cpu' / 'run.json'} is damaged"):
        load_stored_run(tmp_path / "m-cpu")


def test_full_disk_leaves_the_old_baseline_or_none(tmp_path: Path) -> None:
    accept(a_stored(), tmp_path / "m-cpu", "old")
    before = {file.name: file.read_bytes() for file in (tmp_path / "m-cpu").iterdir()}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))  # Python ignores the signal and gets EFBIG
    try:
        for name in ("m-cpu", "new"):
            with pytest.raises(RunFolderError, match="Cannot write to"):
                accept(a_stored(a_result(layer=1)), tmp_path / name, "more than the disk has room for\n" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert {file.name: file.read_bytes() for file in (tmp_path / "m-cpu").iterdir()} == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.name)
def test_published_baseline_is_small_and_can_be_read(path: Path) -> None:
    assert sum(file.stat().st_size for file in path.iterdir()) < 1 << 20
    assert {file.name for file in path.iterdir()} == {PACKED, "run.json", "summary.csv"}
    stored = load_stored_run(path)
    assert path.name == f"{stored.run.model}-cpu"
    assert {result.cell.candidate for result in stored.results} == {"cgverify"}
    assert not any(result.verdict.fails for result in stored.results)


def test_baselines_of_the_nightly_gate_are_published() -> None:
    assert {path.name for path in PUBLISHED} >= {"codegen-nano-cpu", "codegen-350M-cpu"}
