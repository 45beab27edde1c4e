"""`cgverify all-components`: output, files and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command_line import ROOT, Cli
from hugging_face import needs_upstream
from safetensors.torch import load_file, save_file

from cgverify.plan.cases import CASE_KINDS, DEFAULT_CASES
from cgverify.runs.reading import read_run

QUICK = ("all-components", "--model", "codegen-nano", "--layers", "1", "--case", "default")


def test_run_prints_the_table_and_writes_the_folder(cli: Cli, tmp_path: Path) -> None:
    done = cli(*QUICK, "--output", "run")
    assert done.returncode == 0, done.stderr
    for kind in ("embed", "ln1", "attn.q", "mlp.in", "block", "ln_final", "unembed"):
        assert kind in done.stdout
    assert "codegen-nano (shipped)" in done.stderr
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        *(".lock", "plan.jsonl", "run.json", "findings.jsonl", "findings.csv", "summary.csv", "timings.csv")
    }
    findings = pd.read_csv(folder / "findings.csv")
    assert (findings["r"] <= 1).all()
    assert set(findings["component"]) >= {"embed", "blocks.1", "blocks.1.attn.k"}
    summary = pd.read_csv(folder / "summary.csv")
    assert summary["taps"].sum() == len(findings)
    run = json.loads((folder / "run.json").read_text())
    assert run["weights_digest"]
    assert run["environment"]["numerics"]["threads"] >= 1
    assert run["environment"]["versions"]["torch"].startswith("2")


def test_plain_run_has_default_cases_and_all_has_every_case(cli: Cli, tmp_path: Path) -> None:
    every = {case for case, kinds in CASE_KINDS.items() if "attn" in kinds}
    for options, cases in (("--case", "all"), every), ((), every & {*DEFAULT_CASES}):
        arguments = ("all-components", "--model", "codegen-nano", "--layers", "1", *options, "--format", "json", "-q")
        arguments += ("--component", "attn")
        done = cli(*arguments, "--output", f"run{len(cases)}")
        assert done.returncode == 0, done.stderr
        assert {finding["case"] for finding in json.loads(done.stdout)["findings"]} == cases


def test_json_report_is_one_object_with_every_field(cli: Cli) -> None:
    done = cli(*QUICK, "--dtype", "float32,bfloat16", "--dtype", "float16", "--format", "json", "-q")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report) == {"run", "summary", "failed", "findings"}
    fields = {
        *("component", "layer", "tap", "stage", "case", "dtype", "device", "rotary_dim", "candidate", "seed"),
        *("verdict", "r", "max_abs", "max_ulp", "shape", "message"),
    }
    assert all(fields <= set(finding) for finding in report["findings"])
    summary = report["summary"]
    assert summary["ok"] is True
    assert summary["taps"] == len(report["findings"])
    assert summary["bitwise"] + summary["ulp"] + summary["bounded"] == summary["taps"]
    assert {finding["dtype"] for finding in report["findings"]} == {"float32", "bfloat16", "float16"}
    assert done.stderr == ""


def test_same_command_writes_the_same_bytes(cli: Cli, tmp_path: Path) -> None:
    for name in ("first", "second"):
        assert cli(*QUICK, "--bridge", "cgverify,transformer_lens", "--output", name).returncode == 1
    for file in ("findings.csv", "summary.csv"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_failure_comes_first_with_the_command_that_repeats_it(cli: Cli) -> None:
    done = cli(*QUICK, "--bridge", "faults:OneHeadUnrotated", "--component", "attn", "--component", "block")
    assert done.returncode == 1
    first, second = done.stdout.splitlines()[:2]
    assert first.startswith(
        "diverged blocks.1.attn, faults:OneHeadUnrotated in float32, case default: rope breaks first"
    )
    assert "head 1" in first
    assert "position 2" in first
    repeat = second.split()
    assert repeat[0] == "cgverify"
    again = cli(*repeat[1:])
    assert again.returncode == 1
    assert "rope breaks first, at hook_rot_q (" in again.stdout


def test_infinite_figure_is_valid_json_and_keeps_the_exit_code(cli: Cli) -> None:
    done = cli(*QUICK, "--bridge", "faults:ReturnedWeightsZeroed", "--component", "attn", "--format", "json")
    assert done.returncode == 1
    report = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert "Infinity" in {finding["r"] for finding in report["findings"]}


def test_candidate_output_and_exit_stay_out_of_the_report(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(
        "print('at import')\ndef loud(bridge):\n    print('at boot')\n    return bridge\n"
    )
    (tmp_path / "leaves.py").write_text("raise SystemExit(0)\n")
    loud = cli(*QUICK, "--bridge", "loud:loud", "--component", "embed", "--format", "json")
    assert json.loads(loud.stdout)["summary"]["ok"]
    assert "at boot" in loud.stderr
    leaves = cli(*QUICK, "--bridge", "leaves:Bridge")
    assert leaves.returncode == 2
    assert "cannot be imported: SystemExit" in leaves.stderr


def test_exception_of_a_candidate_is_a_finding(cli: Cli) -> None:
    reasons = {
        "SaysSurrogates": r"raised where the reference did not: ValueError: \x1b[31mred \ud800",
        "RaisesItsOwn": "raised where the reference did not: OwnError",
        "LeavesAsGenerator": "raised where the reference did not: GeneratorExit: gone",
        "HasNoInputs": "raised in get_random_inputs: OwnError",
        "boots_with_its_own": "raised in boot: OwnError",
    }
    bridges = ",".join(f"raising:{name}" for name in reasons)
    cases = ("--component", "attn", "--component", "model", "--case", "default,model")
    done = cli(*QUICK[:-2], *cases, "--format", "json", "--bridge", bridges)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    messages = {
        (one["candidate"], one["case"]): one["message"]
        for one in report["findings"]
        if "raised in" in one["message"] or "raised where" in one["message"]
    }
    for name, why in reasons.items():
        assert why in messages[f"raising:{name}", "default"]
    assert messages["raising:boots_with_its_own", "model"].endswith("OwnError")


def test_output_that_bypasses_python_stays_out_of_the_report(cli: Cli) -> None:
    done = cli(*QUICK, "--bridge", "raising:Writes", "--component", "attn", "--case", "default", "--format", "json")
    assert json.loads(done.stdout)["summary"]["cells"]
    assert "past Python\n" in done.stderr
    assert "through C's buffer\n" in done.stderr


def test_csv_on_stdout_equals_the_file_in_the_run_folder(cli: Cli, tmp_path: Path) -> None:
    done = cli(*QUICK, "--component", "embed", "--format", "csv", "--output", "run")
    assert done.stdout == (tmp_path / "run" / "findings.csv").read_text()


def test_run_that_compared_nothing_exits_with_5(cli: Cli) -> None:
    done = cli(*QUICK, "--rotary-dim", "7")
    assert done.returncode == 5
    assert "Hugging Face refuses rotary_dim 7" in done.stdout


def test_default_folder_is_named_after_model_and_time(cli: Cli, tmp_path: Path) -> None:
    for _ in range(2):
        assert cli(*QUICK, "--component", "embed").returncode == 0
    folders = list((tmp_path / "reports").iterdir())
    assert len(folders) == 2
    assert all(folder.name.startswith("codegen-nano-20") for folder in folders)


def test_options_are_read_from_the_environment(cli: Cli) -> None:
    done = cli(*QUICK, "--component", "embed", "--format", "json", CGVERIFY_DTYPE="float16", CGVERIFY_SEED="3")
    assert {(finding["dtype"], finding["seed"]) for finding in json.loads(done.stdout)["findings"]} == {("float16", 3)}


def test_output_without_a_terminal_has_no_colour(cli: Cli) -> None:
    assert "\x1b[" not in cli(*QUICK, "--component", "embed").stdout


def test_exitfirst_stops_at_the_first_failure(cli: Cli, tmp_path: Path) -> None:
    arguments = ("all-components", "--model", "codegen-nano", "--bridge", "faults:HeadsSwapped", "--output", "run")
    assert cli(*arguments, "--component", "attn", "-x").returncode == 1
    assert len(read_run(tmp_path / "run")[1]) == 1


def test_resume_runs_the_remaining_cells(cli: Cli, tmp_path: Path) -> None:
    arguments = (*QUICK, "--output", "run")
    assert cli(*arguments).returncode == 0
    whole = {file: (tmp_path / "run" / file).read_bytes() for file in ("findings.csv", "summary.csv")}
    path = tmp_path / "run" / "findings.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + lines[5][:40])
    again = cli(*arguments, "--resume")
    assert again.returncode == 0, again.stderr
    assert "5 cells are finished already" in again.stderr
    assert {file: (tmp_path / "run" / file).read_bytes() for file in whole} == whole


def damaged(folder: Path, name: str, value: float) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name].view(-1)[3] = value
    save_file(tensors, path, metadata={"format": "pt"})


def test_nan_in_weights_is_an_error_and_the_rest_is_verified(cli: Cli, folder: Path) -> None:
    damaged(folder, "transformer.h.1.attn.out_proj.weight", float("nan"))
    done = cli("all-components", "--model", str(folder), "--case", "default", "--format", "json")
    assert done.returncode == 3
    report = json.loads(done.stdout)
    errors = [finding for finding in report["findings"] if finding["verdict"] == "error"]
    assert {finding["layer"] for finding in errors} == {1}
    assert all("attn.out_proj.weight has 1 NaN" in finding["message"] for finding in errors)
    assert {finding["layer"] for finding in report["findings"] if finding["verdict"] == "bitwise"} == {0, None}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--model", "codegen-340M"), 2, "did you mean 'codegen-350M'"),
        (("--model", "./nowhere"), 2, "no folder"),
        (("--dtype", "float8"), 2, "did you mean 'float"),
        (("--device", "gpu"), 2, "--device 'gpu': torch knows no such device: write cpu, cuda, cuda:1, mps, or"),
        (("--device", "mps"), 3, "no mps device: torch finds cpu"),
        (("--device", "cuda:7"), 3, "no cuda:7 device"),
        (("--device", "cuda:one"), 2, "--device 'cuda:one': torch knows no such device"),
        (("--case", "stres"), 2, "did you mean 'stress'"),
        (("--component", "attn.w"), 2, "Unknown --component 'attn.w'"),
        (("--layers", "5"), 2, "between 0 and 4"),
        (("--layers", "x"), 2, "numbers from 0 and ranges"),
        (("--layers", "-1"), 2, "numbers from 0"),
        (("--layers", "0-99999999999"), 2, "--layers: write all, or numbers"),
        (("--seed", "99999999999999999999"), 2, "input should be less than 9223372036854"),
        (("--seq-len", "510"), 2, "has 512 positions"),
        (("--dtype", ","), 2, "names nothing"),
        (("--case", "all,foo"), 2, "--case 'all': unknown case"),
        (("--rotary-dim", "half"), 2, "--rotary-dim 'half': write own, none, or a number"),
        (("--bridge", "nowhere:Bridge"), 2, "No module named 'nowhere'"),
        (("--bridge", "pathlib:Path"), 2, "is not a bridge"),
        (("--weights", "best"), 2, "Unknown --weights 'best'"),
        (("--format", "xml"), 2, "Unknown --format 'xml'"),
        (("--output", "/proc/nowhere"), 2, "Cannot write"),
        (("--output", "."), 2, "exists and is not empty"),
        (("--resume",), 2, "--output"),
    ],
)
def test_bad_input_is_reported_in_one_sentence(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run in this process, since a new one for each input would take minutes to import."""
    from typer.testing import CliRunner

    from cgverify.cli.app import app

    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").write_text("")
    given = {"--model": "codegen-nano"} | dict(zip(arguments[::2], arguments[1::2], strict=False))
    flags = [argument for argument in arguments if argument == "--resume"]
    result = CliRunner().invoke(app, ["all-components", *(x for pair in given.items() for x in pair), *flags])
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_occupied_folder_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "something").write_text("")
    arguments = [*QUICK, "--output", str(tmp_path)]
    script = (
        "import sys; from cgverify.cli.app import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit as ended: print(ended.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "2 False\n"
    assert "exists and is not empty" in done.stderr


def test_python_dash_m_and_the_script_are_one_program() -> None:
    for program in ([sys.executable, "-m", "cgverify"], [str(Path(sys.executable).parent / "cgverify")]):
        if not Path(program[0]).exists():
            pytest.fail("the console script is not installed: pip install -e .")
        done = subprocess.run([*program, "--version"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("cgverify ")


def test_models_lists_sizes_and_what_is_on_this_disk(cli: Cli) -> None:
    rows: list[dict[str, Any]] = json.loads(cli("models", "--format", "json").stdout)
    by_name = {row["name"]: row for row in rows}
    assert by_name["codegen-nano"]["on_this_disk"] is True
    assert by_name["codegen-16B"]["n_layer"] == 34
    assert 15e9 < by_name["codegen-16B"]["parameters"] < 17e9
    assert "codegen-350M" in cli("models").stdout


def test_env_prints_what_a_run_records(cli: Cli) -> None:
    described = json.loads(cli("env", "--format", "json", "--threads", "1").stdout)
    assert described["numerics"]["threads"] == 1
    assert described["numerics"]["tf32"] is False
    assert set(described) == {"versions", "machine", "numerics"}
    assert "torch" in cli("env").stdout


@needs_upstream
def test_prompt_is_recorded_reported_and_carried_again_on_resume(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("[100, 101, 102, 32, 102, 40, 41, 58]")
    arguments = ("all-components", "--model", "codegen-nano", "--layers", "3", "--case", "text,model")
    options = ("--bridge", "transformer_lens", "--dtype", "float32", "--tokens", "ids", "--output", "run")
    done = cli(*arguments, *options)
    assert done.returncode == 1, done.stderr
    (line,) = [
        line for line in done.stdout.splitlines() if line.startswith("whole model · codegen-nano · transformer_lens")
    ]
    assert "max |Δ| from the reference" in line
    assert (
        "top-1 agrees at 8 of 8 positions; 8 of 8 generated tokens alike; booted whole it gives the same bits" in line
    )
    assert "--case text --bridge transformer_lens --tokens ids" in done.stdout
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["checkpoints"][0]["prompt"]
    assert recorded == {"tokens": [100, 101, 102, 32, 102, 40, 41, 58], "origin": "tokens of ids"}

    findings = (tmp_path / "run" / "findings.csv").read_bytes()
    log = tmp_path / "run" / "findings.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:4]))
    again = cli(*arguments, *options, "--resume")
    assert again.returncode == 1, again.stderr
    assert (tmp_path / "run" / "findings.csv").read_bytes() == findings
