"""Baselines: small, the same bytes for the same run, and refused where they could not be compared with."""

from __future__ import annotations

import math
import os
import resource
from pathlib import Path

import pytest
from command_line import ROOT
from made_records import a_finding, a_result, a_run

from cgverify.common.errors import RunFolderError
from cgverify.common.records import CellResult, Verdict
from cgverify.runs.baseline import PACKED, StoredRun, accept, load_stored_run, require_finished
from cgverify.runs.comparison import compare_runs
from cgverify.runs.folder import Planned, RunFolder

PUBLISHED = sorted(path.parent for path in (ROOT / "reports").glob(f"*/{PACKED}"))


def a_stored(*results: CellResult) -> StoredRun:
    return StoredRun(a_run(), results or (a_result(a_finding(r=math.inf, max_abs=math.nan), seconds=0.12345),))


def test_what_is_accepted_can_be_read_back_but_for_what_is_not_kept(tmp_path: Path) -> None:
    finding = a_finding(verdict=Verdict.DIVERGED, r=math.inf, tensors="tensors/x.safetensors", message="off")
    stored = a_stored(a_result(finding, silent_hooks=("hook_result",), seconds=0.12345))
    accept(stored, tmp_path / "m-cpu", "")
    again = load_stored_run(tmp_path / "m-cpu")
    assert again.run == stored.run
    (result,) = again.results
    assert result.seconds == 0.123
    assert result.silent_hooks == ("hook_result",)
    assert result.findings == (finding.model_copy(update={"tensors": ""}),)


def test_the_same_run_is_the_same_bytes_whenever_it_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(a_stored(), tmp_path / "a", "")
    monkeypatch.setattr("time.time", lambda: 2e9)
    accept(a_stored(), tmp_path / "b", "")
    assert (tmp_path / "a" / PACKED).read_bytes() == (tmp_path / "b" / PACKED).read_bytes()


def test_a_run_folder_and_a_baseline_are_read_alike(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", a_run())
    folder.append(a_result())
    folder.close()
    accept(load_stored_run(tmp_path / "run"), tmp_path / "m-cpu", "")
    assert load_stored_run(tmp_path / "m-cpu") == load_stored_run(tmp_path / "run")
    assert compare_runs(tmp_path / "m-cpu", str(tmp_path / "run")).cells == 1


def test_cells_stand_in_the_plans_order_whatever_finished_first(tmp_path: Path) -> None:
    results = [a_result(layer=layer) for layer in (2, 0, 1)]
    plan = [Planned(place=place, cell=result.cell) for place, result in enumerate(results)]
    for name, planned, layers in (("planned", plan, [2, 0, 1]), ("older", [], [0, 1, 2])):
        folder = RunFolder.create(tmp_path / name, a_run(), planned)
        for result in (results[1], results[0], results[2]):
            folder.append(result)
        folder.close()
        accept(load_stored_run(tmp_path / name), tmp_path / f"{name}-cpu", "")
        for path in (tmp_path / name, tmp_path / f"{name}-cpu"):
            assert [result.cell.layer for result in load_stored_run(path).results] == layers


@pytest.mark.parametrize(
    ("verdict", "told"), [(Verdict.ERROR, "could not be run"), (Verdict.UNSUPPORTED, "compared nothing")]
)
def test_a_run_that_later_ones_cannot_be_held_to_is_refused(verdict: Verdict, told: str, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=told):
        accept(a_stored(a_result(a_finding("", "", verdict, r=None))), tmp_path / "m-cpu", "")
    assert not (tmp_path / "m-cpu").exists()


def test_an_unfinished_run_is_told(tmp_path: Path) -> None:
    plan = [Planned(place=layer, cell=a_result(layer=layer).cell) for layer in range(3)]
    folder = RunFolder.create(tmp_path / "run", a_run(), plan)
    folder.append(a_result())
    folder.close()
    with pytest.raises(RunFolderError, match=r"2 cells of .* are still to be run"):
        require_finished(tmp_path / "run")


def test_a_run_folder_is_never_overwritten(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", a_run()).close()
    with pytest.raises(RunFolderError, match="is no baseline"):
        accept(a_stored(), tmp_path / "run", "")


def test_a_damaged_baseline_is_told(tmp_path: Path) -> None:
    accept(a_stored(), tmp_path / "m-cpu", "")
    os.truncate(tmp_path / "m-cpu" / PACKED, 30)
    with pytest.raises(RunFolderError, match="Cannot read the baseline"):
        load_stored_run(tmp_path / "m-cpu")


def test_a_baseline_whose_bytes_are_not_its_own_is_told(tmp_path: Path) -> None:
    accept(a_stored(), tmp_path / "m-cpu", "")
    packed = tmp_path / "m-cpu" / PACKED
    content = bytearray(packed.read_bytes())
    content[12:40] = bytes(byte ^ 0xFF for byte in content[12:40])
    packed.write_bytes(content)
    with pytest.raises(RunFolderError, match="Accept it anew"):
        load_stored_run(tmp_path / "m-cpu")


def test_what_is_wrong_with_a_baseline_is_told_of_its_own_folder(tmp_path: Path) -> None:
    accept(a_stored(), tmp_path / "m-cpu", "")
    (tmp_path / "m-cpu" / "run.json").write_text("{")
    with pytest.raises(RunFolderError, match=f"{tmp_path / 'm-cpu' / 'run.json'} is damaged"):
        load_stored_run(tmp_path / "m-cpu")


def test_a_full_disk_leaves_a_baseline_as_it_was_and_makes_no_half_of_one(tmp_path: Path) -> None:
    accept(a_stored(), tmp_path / "m-cpu", "old")
    before = {file.name: file.read_bytes() for file in (tmp_path / "m-cpu").iterdir()}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))  # Python ignores the signal, and gets EFBIG
    try:
        for name in ("m-cpu", "new"):
            with pytest.raises(RunFolderError, match="Cannot write to"):
                accept(a_stored(a_result(layer=1)), tmp_path / name, "more than there is room for\n" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert {file.name: file.read_bytes() for file in (tmp_path / "m-cpu").iterdir()} == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.name)
def test_a_published_baseline_is_small_and_reads(path: Path) -> None:
    assert sum(file.stat().st_size for file in path.iterdir()) < 1 << 20
    assert {file.name for file in path.iterdir()} == {PACKED, "run.json", "summary.csv"}
    stored = load_stored_run(path)
    assert path.name == f"{stored.run.model}-cpu"
    assert {result.cell.candidate for result in stored.results} == {"cgverify"}
    assert not any(result.verdict.fails for result in stored.results)


def test_the_two_that_the_nightly_gate_asks_for_are_published() -> None:
    assert {path.name for path in PUBLISHED} >= {"codegen-nano-cpu", "codegen-350M-cpu"}
