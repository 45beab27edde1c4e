"""`--allow`: the shortcuts are recorded, reported, and repeated with a failure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cgverify.cli.app import app
from cgverify.common.numerics import pin_numerics

PLAN = ["all-components", "--model", "codegen-nano", "--layers", "0", "--case", "default", "-q"]


@pytest.fixture(autouse=True)
def _strict_afterwards() -> Iterator[None]:
    yield
    pin_numerics(None)


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*PLAN, *arguments])


def test_allowed_shortcuts_are_recorded_and_reported(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = invoke("--component", "attn.q", "--allow", "tf32,reduction", "--output", str(folder))
    assert done.exit_code == 0, done.output
    assert "bounds of products are widened, since --allow reduction,tf32 is on" in done.stdout
    run = json.loads((folder / "run.json").read_text())
    assert run["environment"]["numerics"]["allowed"] == ["reduction", "tf32"]
    assert run["environment"]["numerics"]["tf32"] is True
    assert run["settings"]["allow"] == ["tf32", "reduction"]
    strict = invoke("--component", "attn.q", "--output", str(folder), "--resume")
    assert strict.exit_code == 2
    assert "was made with other numerics (allowed" in strict.stderr


def test_default_allows_no_shortcut_and_reports_none(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = invoke("--component", "attn.q", "--output", str(folder))
    assert "widened" not in done.stdout
    numerics = json.loads((folder / "run.json").read_text())["environment"]["numerics"]
    assert (numerics["allowed"], numerics["float32_matmul_precision"]) == ([], "highest")


def test_command_that_repeats_a_failure_names_the_shortcuts(tmp_path: Path) -> None:
    arguments = ("--component", "attn.q", "--bridge", "cgverify.selftest.seeded.precision:projections_in_bfloat16")
    done = invoke(*arguments, "--allow", "reduction", "--output", str(tmp_path / "run"))
    assert done.exit_code == 1, done.output
    assert "--allow reduction" in done.stdout


def test_unknown_shortcut_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    done = invoke("--allow", "tf23", "--output", str(tmp_path / "run"))
    assert done.exit_code == 2
    assert "did you mean 'tf32'" in done.stderr
