"""The plans of `configs/` are found by name, in a checkout and in an installed package."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from command_line import ROOT, Cli
from typer.testing import CliRunner

from cgverify.cli.app import app
from cgverify.common.errors import UnknownNameError
from cgverify.plan.shipped_plans import plan_file, purpose, shipped_plans

NAMES = {"device-regression", "dtype-regression", "nightly", "rotary", "smoke"}


def test_plans_of_a_checkout_are_found_by_name() -> None:
    assert set(shipped_plans()) == NAMES
    assert plan_file(Path("smoke")) == ROOT / "configs" / "smoke.yaml"


def test_plans_of_an_installed_package_are_in_it(tmp_path: Path) -> None:
    inside, outside = tmp_path / "cgverify" / "configs", tmp_path / "configs"
    for folder in (inside, outside):
        folder.mkdir(parents=True)
        (folder / "mine.yaml").write_text("models: codegen-nano")
    assert shipped_plans(tmp_path / "cgverify") == {"mine": inside / "mine.yaml"}


def test_wheel_takes_the_plans_from_their_home() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert tool["wheel"]["force-include"] == {"configs": "cgverify/configs"}
    assert "/configs" in tool["sdist"]["include"]


def test_own_file_has_precedence_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smoke").write_text("models: codegen-nano")
    assert plan_file(Path("smoke")) == Path("smoke")
    assert plan_file(Path("other/smoke")) == Path("other/smoke")


def test_misspelt_plan_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownNameError, match="Unknown plan 'smoek': did you mean 'smoke'"):
        plan_file(Path("smoek"))


def test_list_shows_each_plan_with_its_purpose() -> None:
    done = CliRunner().invoke(app, ["sweep", "--list"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    for name, path in shipped_plans().items():
        assert name in done.stdout
        assert purpose(path).split(".")[0][:40] in done.stdout
        assert "models" in yaml.safe_load(path.read_text())


def test_sweep_takes_a_plan_by_name(cli: Cli) -> None:
    done = cli("sweep", "smoke", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d+ cells", done.stdout + done.stderr)
