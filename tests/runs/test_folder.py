"""Run folders: what was finished survives, nothing counts twice."""

from __future__ import annotations

import json
import math
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cgverify.common.errors import RunFolderError, StorageError
from cgverify.common.records import SCHEMA_VERSION, Cell, CellResult, Finding, Run, Verdict
from cgverify.runs.folder import BEFORE_RUN, Planned, RunFolder, begun, read_plan, read_run

SCHEMA_1 = Path(__file__).parent / "schema-1"


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
    run, results = read_run(tmp_path / "run")
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
    assert [result.cell.layer for result in read_run(tmp_path / "run")[1]] == [0, 1, 2]


def test_a_cell_that_was_written_twice_counts_once(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", a_run())
    folder.append(a_result(0))
    folder.append(a_result(0))
    assert len(read_run(tmp_path / "run")[1]) == 1


def test_damage_in_the_middle_is_told(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", a_run())
    folder.append(a_result(0))
    path = tmp_path / "run" / "findings.jsonl"
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(RunFolderError, match="Line 1"):
        read_run(tmp_path / "run")


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
    for option, value, told in (
        ("dtypes", ["float16"], "was made with dtypes"),
        (
            "candidate_sources",
            {"x:Y": "abd"},
            r"other sources of its candidates \(x:Y abc, now abd\), .* begin a new run",
        ),
    ):
        now = before.model_copy(update={"settings": {**before.settings, option: value}})
        with pytest.raises(RunFolderError, match=told):
            RunFolder.resume(tmp_path / "run", now)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", a_run()).close()
    with pytest.raises(RunFolderError, match="other weights"):
        RunFolder.resume(tmp_path / "run", a_run().model_copy(update={"weights_digest": "e"}))


def test_a_line_without_its_end_does_not_count_though_it_can_be_read(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", a_run())
    folder.append(a_result(0))
    folder.append(a_result(1))
    folder.close()
    path = tmp_path / "run" / "findings.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    resumed, finished = RunFolder.resume(tmp_path / "run", a_run())
    assert [result.cell.layer for result in finished] == [0]
    resumed.append(a_result(1))
    assert [result.cell.layer for result in read_run(tmp_path / "run")[1]] == [0, 1]


def test_a_separator_of_lines_within_a_message_is_no_end_of_a_line(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", a_run())
    finding = a_result(0).findings[0].model_copy(update={"message": "one\u2028two\x85three"})
    folder.append(a_result(0).model_copy(update={"findings": (finding,)}))
    assert read_run(tmp_path / "run")[1][0].findings[0].message == finding.message


def test_a_cell_that_came_out_differently_the_second_time_is_an_error_for_good(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", a_run())
    for r in (0.5, 0.25, 0.5):
        folder.append(a_result(0, r=r))
    (result,) = read_run(tmp_path / "run")[1]
    assert result.verdict is Verdict.ERROR
    assert "ran twice" in result.findings[0].message
    assert "r 0.5; then bounded, r 0.25" in result.findings[0].message


def test_an_error_gives_way_to_what_was_found(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", a_run())
    error = Finding(step="", tap="", stage="", verdict=Verdict.ERROR, message="out of memory")
    failed = a_result(0).model_copy(update={"findings": (error,)})
    for result in (failed, a_result(0), failed):
        folder.append(result)
    assert read_run(tmp_path / "run")[1][0].verdict is Verdict.BOUNDED


def test_what_is_forgotten_is_gone_and_appending_goes_on(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", a_run())
    for layer in range(3):
        folder.append(a_result(layer))
    folder.forget([a_result(1).cell])
    folder.append(a_result(3))
    assert [result.cell.layer for result in read_run(tmp_path / "run")[1]] == [0, 2, 3]


def test_the_plan_is_kept_with_its_places(tmp_path: Path) -> None:
    plan = [Planned(place=place, cell=a_result(place).cell) for place in (1, 3)]
    RunFolder.create(tmp_path / "run", a_run(), plan).close()
    assert read_plan(tmp_path / "run") == plan


HOLD = """
import sys, time
from pathlib import Path
sys.path.insert(0, "tests")
from test_store import RunFolder, a_run
folder = RunFolder.create(Path(sys.argv[1]), a_run())
print("held", flush=True)
time.sleep(60)
"""


def test_two_processes_do_not_write_to_one_folder_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], cwd=SCHEMA_1.parents[2], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    for start in (RunFolder.create, RunFolder.resume):
        with pytest.raises(RunFolderError, match="Another process is writing"):
            start(path, a_run())
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    RunFolder.resume(path, a_run())[0].close()


@pytest.mark.parametrize("left", [set(), {"plan.jsonl"}, BEFORE_RUN], ids=["nothing", "the plan", "all there may be"])
def test_a_start_that_was_killed_before_there_was_a_run_can_be_made_again(tmp_path: Path, left: set[str]) -> None:
    for name in left:
        (tmp_path / name).write_text("{torn")
    assert not begun(tmp_path)
    RunFolder.create(tmp_path, a_run()).close()
    assert begun(tmp_path)
    assert read_run(tmp_path)[0] == a_run()


def test_killed_before_the_first_cell_a_run_has_no_findings_and_can_be_continued(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, a_run()).close()
    (tmp_path / "findings.jsonl").unlink()
    assert read_run(tmp_path)[1] == []
    RunFolder.resume(tmp_path, a_run())[0].close()


def test_a_full_disk_is_told_and_what_was_finished_is_kept(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", a_run())
    folder.append(a_result(0))
    size = (tmp_path / "run" / "findings.jsonl").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, before[1]))  # Python ignores the signal, and gets EFBIG
    try:
        with pytest.raises(StorageError, match="make room, and --resume goes on"):
            folder.append(a_result(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "run" / "findings.jsonl").stat().st_size == size, "no torn line is left"
    folder.append(a_result(1))
    assert [result.cell.layer for result in read_run(tmp_path / "run")[1]] == [0, 1]


def test_a_run_of_the_first_schema_still_reads(tmp_path: Path) -> None:
    run, results = read_run(SCHEMA_1)
    assert run.schema_version == 1
    assert run.checkpoint_of(results[0].cell).asked == "codegen-nano"
    assert len(results) == 4
    assert {result.verdict for result in results} == {Verdict.BITWISE}
    assert read_plan(SCHEMA_1) == []


def test_a_run_of_a_newer_schema_is_refused_in_one_sentence(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", a_run()).close()
    path = tmp_path / "run" / "run.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps({**described, "schema_version": SCHEMA_VERSION + 1, "unheard_of": 1}))
    with pytest.raises(RunFolderError, match="is of a newer cgverify"):
        read_run(tmp_path / "run")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema_version": "new"}'])
def test_a_damaged_description_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunFolderError, match="is damaged"):
        read_run(tmp_path)
