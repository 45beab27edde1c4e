"""Verification and benchmarks on a device that is not the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import simulated_device
from command_line import ROOT, Cli, command

from cgverify.plan.cases import CASE_KINDS, DEFAULT_CASES, SAMPLED

CASES_OF_NORM = [case for case in DEFAULT_CASES if "ln1" in SAMPLED.get(case, CASE_KINDS[case])]
SUPPORT = ROOT / "tests" / "support"
NANO = ("--model", "codegen-nano", "--layers", "0", "--threads", "1", "-q")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def on_sim(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a command in a new process that has the simulated device."""
    missing = simulated_device.missing_tools()
    if missing:
        pytest.skip(f"the simulated device is compiled with {' and '.join(missing)}")
    python_path = [str(simulated_device.built()), str(SUPPORT), os.environ.get("PYTHONPATH", "")]
    folder = tmp_path_factory.mktemp("sim")

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            arguments,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(python_path), "COLUMNS": "160", **environment},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def checks(on_sim: Run) -> Mapping[str, Any]:
    done = on_sim(sys.executable, str(SUPPORT / "check_simulated_device.py"), SIM_WITHOUT="float64")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# --- the simulated device itself --------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["add", "product", "cat", "other"])
def test_simulated_device_refuses_operands_of_two_devices(checks: Mapping[str, Any], operation: str) -> None:
    assert "device" in checks["refused"][operation]


def test_devices_are_those_that_torch_has(checks: Mapping[str, Any]) -> None:
    assert checks["present"] == ["cpu", "sim:0", "sim:1"]
    assert checks["gpu"] == "sim"
    assert checks["absent"].startswith(
        "This machine has no sim:7 device: torch finds cpu, sim:0, sim:1. Choose another"
    )


# --- verification -----------------------------------------------------------------------------------------------------


def across(on_sim: Run, cli: Cli, folder: Path, code: int, *options: str, **environment: str) -> dict[str, Any]:
    """Verify some components on both devices, and return the comparison of the devices."""
    asked = ("--component", "attn,mlp,unembed", "--case", "default,decode,backward,train", "--device", "cpu,sim")
    done = on_sim(*command("all-components", *NANO, *asked, "--output", str(folder), *options), **environment)
    assert done.returncode == code, done.stdout + done.stderr
    compared = cli("compare", "--across", "device", "cpu", "sim", str(folder), "--format", "json")
    value: dict[str, Any] = json.loads(compared.stdout)
    assert value["cells"] == 9
    return value


def test_exact_device_has_no_difference_from_the_cpu(on_sim: Run, cli: Cli, tmp_path: Path) -> None:
    found = across(on_sim, cli, tmp_path / "run", 0)
    assert {(each["error"], each["verdict"]) for each in found["first_differences"]} == {(None, None)}
    assert all(tap["verdict_first"] == tap["verdict_second"] in ("bitwise", "bounded") for tap in found["taps"])


@pytest.mark.slow
def test_rounded_operands_differ_first_in_products(on_sim: Run, cli: Cli, tmp_path: Path) -> None:
    found = across(on_sim, cli, tmp_path / "run", 1, SIM_PRODUCTS="rounded")
    first = {(each["kind"], each["case"]): each["error"] for each in found["first_differences"]}
    assert first["attn", "default"] == first["attn", "decode"] == "project_q"
    assert first["mlp", "default"] == "mlp_in"
    assert first["unembed", "default"] == "unembed"
    assert first["mlp", "backward"] == "gradient"
    beyond = {tap["stage"] for tap in found["taps"] if tap["r_second"] is not None and tap["r_second"] > 1}
    assert {"project_q", "scores", "mix", "output", "mlp_in", "mlp_out", "unembed"} <= beyond
    assert not beyond & {"input", "rope", "softmax", "activation", "cache"}
    allowed = across(on_sim, cli, tmp_path / "allowed", 0, "--allow", "tf32", SIM_PRODUCTS="rounded")
    assert all(tap["r_second"] is None or tap["r_second"] <= 1 for tap in allowed["taps"])


def test_bridge_on_a_device_agrees_with_its_reference(checks: Mapping[str, Any]) -> None:
    assert checks["pair"] == checks["compatible"] == {"devices": ["sim:1"], "exit_code": 0}


def test_missing_dtype_is_an_error_with_its_reason(checks: Mapping[str, Any]) -> None:
    message = "The sim device has no float64 (sim doesn't support float64): leave it out."
    assert {tuple(each) for each in checks["dtypes"]} == {("float64", case, "error", message) for case in CASES_OF_NORM}


def test_missing_random_state_is_an_error_in_train_alone(checks: Mapping[str, Any]) -> None:
    message = "The sim:0 device has no random state to set: leave the case train out there."
    assert checks["random"] == [["float32", "train", "error", message]]


@pytest.mark.slow
def test_missing_operation_is_an_error_of_no_side(on_sim: Run, tmp_path: Path) -> None:
    asked = ("--component", "mlp,attn", "--device", "sim", "--output", str(tmp_path / "run"), "--format", "json")
    done = on_sim(*command("all-components", *NANO, *asked), SIM_WITHOUT="aten::tanh")
    assert done.returncode == 3, done.stdout + done.stderr
    found = json.loads(done.stdout)["findings"]
    errors = [each for each in found if each["verdict"] not in ("bitwise", "bounded")]
    assert {(each["component"], each["verdict"]) for each in errors} == {("blocks.0.mlp", "error")}
    assert all("this device lacks an operation" in each["message"] for each in errors)
    assert {each["component"] for each in found} == {"blocks.0.mlp", "blocks.0.attn"}


@pytest.mark.slow
def test_every_case_holds_on_a_device_without_float64(on_sim: Run, tmp_path: Path) -> None:
    asked = ("--case", "all", "--dtype", "float32,bfloat16,float16", "--device", "sim")
    done = on_sim(
        *command("all-components", *NANO, *asked, "--output", str(tmp_path / "run"), "--format", "json"),
        SIM_WITHOUT="float64",
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    verdicts = json.loads(done.stdout)["findings"]
    assert {each["verdict"] for each in verdicts} <= {"bitwise", "bounded", "ulp"}
    assert all(each["reference_r"] is None or each["reference_r"] <= 1 for each in verdicts)


# --- benchmarks -------------------------------------------------------------------------------------------------------


def test_clock_waits_for_every_device(checks: Mapping[str, Any]) -> None:
    assert checks["synchronizations"] == 2


@pytest.mark.slow
def test_bench_measures_time_and_memory_on_a_device(on_sim: Run, tmp_path: Path) -> None:
    asked = ("--model", "codegen-nano", "--component", "attn", "--shape", "2x8", "--device", "sim:1", "--threads", "1")
    limits = ("--scenario", "prefill,memory", "--seconds", "0.2", "--output", str(tmp_path / "bench"))
    done = on_sim(*command("bench", *asked, *limits, "-q", "--format", "json"))
    assert done.returncode == 0, done.stdout + done.stderr
    time, memory = sorted(
        json.loads(done.stdout)["measured"], key=lambda each: str(each["point"]["scenario"]), reverse=True
    )
    assert time["point"]["device"] == memory["point"]["device"] == "sim:1"
    assert time["same_bits"]
    assert 0.2 < time["ratio"] < 20
    assert memory["unit"] == "B"
    assert memory["value"] >= 2 * 8 * 64 * 4
