"""The GitHub action: its shell steps run with bash, as a runner runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import ROOT

ACTION = yaml.safe_load((ROOT / "action.yml").read_text())

RECORDING = """#!/bin/bash
echo "$(basename "$0") $*" >> "$CALLS"
case $1 in
  cache) echo /the/cache ;;
  all-components) mkdir -p "$RUNNER_TEMP/cgverify/run"; exit "$FOUND" ;;
  compare) exit "$COMPARED" ;;
esac
"""


def run_action(folder: Path, path: str, **given: str) -> tuple[int, str]:
    """Run the shell steps in order until one fails. Return its exit code, or 0, and the output of all of them.

    Args:
        path: the PATH.
        given: the action's inputs, and in capitals variables of the environment.
    """
    inputs = {name: described["default"] for name, described in ACTION["inputs"].items()}
    inputs |= {name: value for name, value in given.items() if name.islower()}
    runner = {"GITHUB_ACTION_PATH": ROOT, "RUNNER_OS": "Linux", "RUNNER_TEMP": folder / "temp"}
    files = {name: folder / name for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    variables = {**os.environ, **{name: value for name, value in given.items() if name.isupper()}, "PATH": path}
    output = ""
    for step in ACTION["runs"]["steps"]:
        if "run" not in step:
            continue
        assert step["shell"] == "bash"
        own = {name: filled_in(value, inputs) for name, value in step.get("env", {}).items()}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=folder,
            env={**variables, **{name: str(value) for name, value in {**runner, **files}.items()}, **own},
            capture_output=True,
            text=True,
            check=False,
        )
        output += done.stdout + done.stderr
        if done.returncode:
            return done.returncode, output
    return 0, output


def filled_in(value: str, inputs: dict[str, str]) -> str:
    return re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda found: inputs[found[1]], value)


@pytest.fixture
def recorded(tmp_path: Path) -> Any:
    """Run the action with a pip and a cgverify that only record their calls, and return its exit code and the calls."""
    for program in ("pip", "cgverify"):
        (tmp_path / program).write_text(RECORDING)
        (tmp_path / program).chmod(0o755)

    def run(found: int = 0, compared: int = 0, **inputs: str) -> tuple[int, list[str]]:
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        counted = {"FOUND": str(found), "COMPARED": str(compared), "CALLS": str(calls)}
        status, _ = run_action(tmp_path, f"{tmp_path}:/usr/bin:/bin", **counted, **inputs)
        return status, calls.read_text().splitlines()

    return run


def test_action_matches_githubs_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-actions", "action.yml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_input_is_pasted_into_a_script() -> None:
    assert not [step for step in ACTION["runs"]["steps"] if "${{" in step.get("run", "")]


@pytest.mark.parametrize(
    ("found", "compared", "baseline", "status"),
    [
        (0, 0, "", 0),
        (1, 0, "", 1),
        (3, 0, "", 3),
        (5, 0, "", 5),
        (1, 0, "kept", 0),  # the failures are known
        (0, 1, "kept", 1),
        (3, 0, "kept", 3),
    ],
)
def test_action_fails_as_the_command_does(recorded: Any, found: int, compared: int, baseline: str, status: int) -> None:
    assert recorded(found, compared, baseline=baseline)[0] == status


def test_failed_run_is_reported_and_annotated_all_the_same(recorded: Any) -> None:
    _, calls = recorded(1)
    assert [call.split(" --output")[0].rpartition("--format ")[2] for call in calls if " report " in call] == [
        "html",
        "github",
    ]
    assert ACTION["runs"]["steps"][-1]["if"] == "${{ !cancelled() }}"


def test_version_and_package_of_the_caller_are_installed(recorded: Any) -> None:
    pinned = f"pip install -q -c {ROOT}/constraints.txt {ROOT}"
    assert [call for call in recorded()[1] if "pip install" in call] == [pinned]
    _, calls = recorded(version="0.1.0", install="-e . other")
    assert [call for call in calls if "pip install" in call] == [
        "pip install -q cgverify==0.1.0",
        "pip install -q -e . other",
    ]


def test_cases_are_those_of_the_command_unless_given(recorded: Any) -> None:
    for given, asked in ("", ""), ("default,data", " --case default,data"):
        (call,) = [call for call in recorded(cases=given)[1] if "all-components" in call]
        assert f" --dtype float32{asked} --output " in call


@pytest.mark.slow
def test_action_reports_a_faulty_bridge_as_a_runner_would(tmp_path: Path) -> None:
    """Run the real program on a bridge whose scores are wrong. Only pip is replaced, by a script that does nothing."""
    (tmp_path / "pip").write_text("#!/bin/bash\n")
    (tmp_path / "cgverify").write_text(f'#!/bin/bash\nexec {sys.executable} -m cgverify "$@"\n')
    for program in ("pip", "cgverify"):
        (tmp_path / program).chmod(0o755)
    (tmp_path / "my_bridges.py").write_text(
        "from cgverify.bridge import CodeGenAttentionBridge\n"
        "class Experiment(CodeGenAttentionBridge):\n"
        "    def _scores(self, *args):\n"
        "        return super()._scores(*args) * 1.0001\n"
    )
    faulty = {"candidate": "my_bridges:Experiment", "PYTHONPATH": f"{ROOT}"}
    status, output = run_action(tmp_path, f"{tmp_path}:/usr/bin:/bin", cases="default", **faulty)
    assert status == 1, output
    assert "::error" in output
    assert "diverged" in (tmp_path / "GITHUB_STEP_SUMMARY").read_text()
    assert "<html" in (tmp_path / "temp" / "cgverify" / "report.html").read_text()
    assert (tmp_path / "temp" / "cgverify" / "run" / "findings.csv").exists()
