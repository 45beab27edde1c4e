"""Run folders: finished results survive a crash, and no result counts twice."""

from __future__ import annotations

import json
import math
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from made_records import ENVIRONMENT, a_finding, a_result, a_run, a_run_folder

from cgverify.common.errors import RunFolderError, StorageError
from cgverify.common.records import SCHEMA_VERSION, CellResult, Verdict
from cgverify.runs.folder import RunFolder
from cgverify.runs.reading import STARTUP_FILES, PlannedCell, is_occupied, read_plan, read_run

SUPPORT = Path(__file__).parents[1] / "support"


def layers_of(path: Path) -> list[int | None]:
    return [result.cell.layer for result in read_run(path)[1]]


def with_r(r: float) -> CellResult:
    return a_result(a_finding(verdict=Verdict.BOUNDED, r=r))


def test_appended_results_are_read_with_nan_and_infinity(tmp_path: Path) -> None:
    folder = a_run_folder(tmp_path / "run", a_result(a_finding(r=math.inf, max_abs=math.nan)))
    assert len((tmp_path / "run" / "findings.jsonl").read_text().splitlines()) == 1, "on disk before the run is closed"
    run, (result,) = read_run(tmp_path / "run")
    assert run == folder.run
    assert result.cell == a_result().cell
    assert result.findings[0].r == math.inf
    assert math.isnan(result.findings[0].max_abs or 0.0)


def test_folder_with_a_run_is_refused(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", a_run()).close()
    with pytest.raises(RunFolderError, match="--resume"):
        RunFolder.create(tmp_path / "run", a_run())


def test_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="Cannot write"):
        RunFolder.create(tmp_path / "file" / "run", a_run())


@pytest.mark.parametrize("torn", [25, 1], ids=["half a line", "a line without its newline"])
def test_incomplete_last_line_is_cut_off(tmp_path: Path, torn: int) -> None:
    path = tmp_path / "run"
    a_run_folder(path, *(a_result(layer=layer) for layer in range(3))).close()
    findings = path / "findings.jsonl"
    findings.write_bytes(findings.read_bytes()[:-torn])
    resumed, finished = RunFolder.resume(path, a_run())
    assert [result.cell.layer for result in finished] == [0, 1]
    resumed.append(a_result(layer=2))
    assert layers_of(path) == [0, 1, 2]


def test_damaged_line_is_reported_with_its_number(tmp_path: Path) -> None:
    a_run_folder(tmp_path / "run", a_result())
    path = tmp_path / "run" / "findings.jsonl"
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(RunFolderError, match="Line 1"):
        read_run(tmp_path / "run")


def test_folder_without_a_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no run"):
        RunFolder.resume(tmp_path, a_run())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"environment": {**ENVIRONMENT, "numerics": {"threads": 1, "tf32": False}}}, "threads 2, now 1"),
        ({"environment": {**ENVIRONMENT, "versions": {"torch": "2"}}}, "torch 2.13.0, now 2"),
        ({"settings": {"dtypes": ["float16"], "candidate_sources": {"x:Y": "a"}}}, "was made with dtypes"),
        (
            {"settings": {"dtypes": ("float32",), "candidate_sources": {"x:Y": "b"}}},
            r"source of a candidate has changed .* \(x:Y a, now b\), .* begin a new run",
        ),
        ({"checkpoints": [a_run().checkpoints[0].model_copy(update={"digest": "e"})]}, "other weights"),
    ],
    ids=["threads", "versions", "options", "candidates", "weights"],
)
def test_changed_run_cannot_be_resumed(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    settings = {"dtypes": ("float32",), "candidate_sources": {"x:Y": "a"}}
    a_run_folder(tmp_path / "run", run=a_run(settings=settings)).close()
    RunFolder.resume(tmp_path / "run", a_run(settings=settings))[0].close()
    with pytest.raises(RunFolderError, match=message):
        RunFolder.resume(tmp_path / "run", a_run(**{"settings": settings, **changed}))


def test_unicode_line_separators_in_a_message_are_kept(tmp_path: Path) -> None:
    a_run_folder(tmp_path / "run", a_result(a_finding(message="one\u2028two\x85three")))
    assert read_run(tmp_path / "run")[1][0].findings[0].message == "one\u2028two\x85three"


def test_equal_results_of_a_cell_count_once(tmp_path: Path) -> None:
    a_run_folder(tmp_path / "run", a_result(seconds=1.0), a_result(seconds=2.0))
    assert [result.seconds for result in read_run(tmp_path / "run")[1]] == [1.0]


def test_different_results_of_a_cell_stay_an_error(tmp_path: Path) -> None:
    a_run_folder(tmp_path / "run", *(with_r(r) for r in (0.5, 0.25, 0.5)))
    (result,) = read_run(tmp_path / "run")[1]
    assert result.verdict is Verdict.ERROR
    assert "ran twice" in result.findings[0].message
    assert "r 0.5; then bounded, r 0.25" in result.findings[0].message


def test_result_replaces_an_error(tmp_path: Path) -> None:
    failed = a_result(a_finding("", "", Verdict.ERROR, message="out of memory"))
    a_run_folder(tmp_path / "run", failed, with_r(0.5), failed)
    assert read_run(tmp_path / "run")[1][0].verdict is Verdict.BOUNDED


def test_dropped_cells_are_gone_and_appending_continues(tmp_path: Path) -> None:
    folder = a_run_folder(tmp_path / "run", *(a_result(layer=layer) for layer in range(3)))
    folder.drop([a_result(layer=1).cell])
    folder.append(a_result(layer=3))
    assert layers_of(tmp_path / "run") == [0, 2, 3]


def test_plan_is_kept_with_its_places(tmp_path: Path) -> None:
    plan = [PlannedCell(place=place, cell=a_result(layer=place).cell) for place in (1, 3)]
    RunFolder.create(tmp_path / "run", a_run(), plan).close()
    assert read_plan(tmp_path / "run") == plan


WRITER = """
import sys, time
from pathlib import Path
from made_records import a_run_folder
folder = a_run_folder(Path(sys.argv[1]))
print("writing", flush=True)
time.sleep(60)
"""


def test_killed_writer_leaves_no_lock_behind(tmp_path: Path) -> None:
    path = tmp_path / "run"
    writer = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SUPPORT)!r}){WRITER}", str(path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    for start in (RunFolder.create, RunFolder.resume):
        with pytest.raises(RunFolderError, match="Another process is writing"):
            start(path, a_run())
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    RunFolder.resume(path, a_run())[0].close()


@pytest.mark.parametrize("left", [set(), {"plan.jsonl"}, STARTUP_FILES], ids=["nothing", "the plan", "all files"])
def test_start_that_was_killed_can_be_repeated(tmp_path: Path, left: set[str]) -> None:
    for name in left:
        (tmp_path / name).write_text("{torn")
    assert not is_occupied(tmp_path)
    RunFolder.create(tmp_path, a_run()).close()
    assert is_occupied(tmp_path)
    assert read_run(tmp_path)[0] == a_run()


def test_run_killed_before_its_first_cell_is_resumed(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, a_run()).close()
    (tmp_path / "findings.jsonl").unlink()
    assert read_run(tmp_path)[1] == []
    RunFolder.resume(tmp_path, a_run())[0].close()


def test_full_disk_keeps_the_finished_results(tmp_path: Path) -> None:
    folder = a_run_folder(tmp_path / "run", a_result())
    size = (tmp_path / "run" / "findings.jsonl").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, before[1]))  # Python ignores the signal and gets EFBIG
    try:
        with pytest.raises(StorageError, match="make room, and --resume goes on"):
            folder.append(a_result(layer=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "run" / "findings.jsonl").stat().st_size == size, "no incomplete line is left"
    folder.append(a_result(layer=1))
    assert layers_of(tmp_path / "run") == [0, 1]


@pytest.mark.parametrize("version", [SCHEMA_VERSION - 1, SCHEMA_VERSION + 1])
def test_run_of_another_schema_is_refused(tmp_path: Path, version: int) -> None:
    RunFolder.create(tmp_path / "run", a_run()).close()
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": version, "unknown": 1}))
    with pytest.raises(RunFolderError, match="was written by another version of cgverify"):
        read_run(tmp_path / "run")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", f'{{"schema_version": {SCHEMA_VERSION}}}'])
def test_damaged_description_is_reported(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunFolderError, match="is damaged"):
        read_run(tmp_path)
