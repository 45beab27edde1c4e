"""CI: the workflows, their options, and the script that cuts a plan."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer
import yaml
from command_line import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CI_PAGE = ROOT / "docs" / "ci.md"


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", CI_PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)


def schema_holds(*paths: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_workflows_and_recipe_match_githubs_schema(tmp_path: Path) -> None:
    (recipe,) = fenced("yaml")
    (tmp_path / "recipe.yml").write_text(recipe)
    schema_holds(*WORKFLOWS, tmp_path / "recipe.yml")


def test_nightly_matrix_has_as_many_shards_as_the_plan() -> None:
    nightly = yaml.safe_load((ROOT / ".github" / "workflows" / "nightly.yml").read_text())
    matrix = nightly["jobs"]["verify"]["strategy"]["matrix"]
    assert matrix["lane"] == ["pinned", "latest"]
    assert matrix["shard"] == list(range(1, int(nightly["env"]["SHARDS"]) + 1))


FAKE_CGVERIFY = """#!/bin/bash
case $1 in
  merge) mkdir -p runs/pinned; exit "$MERGED" ;;
  compare) exit "$COMPARED" ;;
esac
"""


@pytest.mark.parametrize(
    ("merged", "green_before", "compared", "accept", "saved"),
    [
        (0, False, 0, "", True),
        (1, False, 0, "", False),  # the first night, or the first after the cache was evicted
        (1, False, 0, "true", True),
        (1, True, 0, "", True),  # the failures are known
        (1, True, 1, "false", False),
        (0, True, 1, "", False),
        (0, True, 1, "true", True),
        (3, True, 0, "true", False),
        (3, False, 0, "true", False),
    ],
)
def test_failed_night_is_not_kept_as_green(
    tmp_path: Path, merged: int, green_before: bool, compared: int, accept: str, saved: bool
) -> None:
    """Run the shell steps of the pinned lane between shards and cache, with a program that only has exit codes."""
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "nightly.yml").read_text())["jobs"]["pinned"]["steps"]
    (first,) = (place for place, step in enumerate(steps) if "cgverify merge" in step.get("run", ""))
    assert "actions/cache/save" in steps[-1]["uses"]
    assert "if" not in steps[-1], "it is skipped if a step before it failed"
    (tmp_path / "cgverify").write_text(FAKE_CGVERIFY)
    (tmp_path / "cgverify").chmod(0o755)
    (tmp_path / "shards" / "pinned-1").mkdir(parents=True)
    outputs = tmp_path / "outputs"
    failed = False
    for step in steps[first:-1]:
        if "actions/cache/restore" in step.get("uses", "") and green_before:
            (tmp_path / "last-green").mkdir()
        if "run" not in step or (failed and step.get("if") != "${{ !cancelled() }}"):
            continue
        merged_status = outputs.read_text().partition("=")[2].strip() if outputs.exists() else ""
        values = {"${{ inputs.accept }}": accept, "${{ steps.merge.outputs.status }}": merged_status}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=tmp_path,
            env={
                "PATH": f"{tmp_path}:/usr/bin:/bin",
                "GITHUB_OUTPUT": str(outputs),
                "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
                "MERGED": str(merged),
                "COMPARED": str(compared),
                **{name: values[value] for name, value in step.get("env", {}).items()},
            },
            check=False,
        )
        failed |= done.returncode != 0
    assert failed is not saved


def commands() -> list[list[str]]:
    """Return the arguments of every call of cgverify in the workflows and in docs/ci.md."""
    texts = [*fenced("sh"), *fenced("yaml")]
    for path in WORKFLOWS:
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            texts += [step["run"] for step in job["steps"] if "run" in step]
    calls = re.findall(
        r"(?:^|[;\s])cgverify ([a-z][^;|>&#\n]*)", "\n".join(texts).replace("\\\n", " "), flags=re.MULTILINE
    )
    return [shlex.split(call) for call in calls if not call.startswith("-e ")]


def test_every_option_in_ci_exists() -> None:
    from cgverify.cli.app import app

    group = typer.main.get_command(app)
    calls = commands()
    assert {call[0] for call in calls} >= {"all-components", "compare", "report", "baseline"}
    for call in calls:
        command = group.commands[call[0]]  # type: ignore[attr-defined]
        if call[0] == "baseline":
            command = command.commands[call[1]]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in call if word.startswith("-")} <= known, call


@pytest.fixture(scope="module")
def hub_models() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hub_models", ROOT / "tools" / "hub_models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hub_ids_of_a_plan_leave_out_local_and_random(hub_models: ModuleType, tmp_path: Path) -> None:
    plan = {
        "models": ["codegen-nano", "codegen-350M", {"model": "codegen-2B", "weights": "random"}, "someone/tuned"],
        "include": [{"models": "codegen-350M-mono"}, {"models": ["a/b", str(tmp_path)], "weights": "pretrained"}],
    }
    assert hub_models.hub_ids(plan) == ["Salesforce/codegen-350M-mono", "someone/tuned", "a/b"]
    assert hub_models.hub_ids({"models": "a/b", "weights": "random:3"}) == []


def test_cut_plan_has_only_the_checkpoints_that_fit(hub_models: ModuleType) -> None:
    plan = {
        "models": ["codegen-nano", "codegen-350M", "codegen-2B-mono", "codegen-6B-nl"],
        "dtypes": ["float32"],
        "include": [{"cases": "all", "limits": {"layers": 3}}, {"models": "codegen-6B-nl", "seeds": [1]}],
        "exclude": [{"models": "*-6B-*", "cases": "backward"}, {"models": ["*-6B-*", "*-2B-*"]}, {"cases": "train"}],
    }
    assert hub_models.without(plan, {"Salesforce/codegen-6B-nl"}) == {
        "models": ["codegen-nano", "codegen-350M", "codegen-2B-mono"],
        "dtypes": ["float32"],
        "include": [{"cases": "all", "limits": {"layers": 3}}],
        "exclude": [{"models": ["*-6B-*", "*-2B-*"]}, {"cases": "train"}],
    }
    assert hub_models.without(plan, ()) == {
        **plan,
        "include": [plan["include"][0], {"models": ["codegen-6B-nl"], "seeds": [1]}],
    }


def test_smallest_checkpoints_that_fit_are_taken(hub_models: ModuleType) -> None:
    sized = [hub_models.Published(name, "r", size, ".bin") for name, size in (("a", 5), ("b", 1), ("c", 3))]
    assert [checkpoint.hub_id for checkpoint in hub_models.within(sized, 4)] == ["b", "c"]
    assert len(hub_models.within(sized, 100)) == 3


def test_older_constraints_differ_in_transformers_alone() -> None:
    newer, older = (set((ROOT / name).read_text().splitlines()) for name in ("constraints.txt", "constraints-5.23.txt"))
    assert older - newer == {"transformers==5.23.0"}
    assert {line.partition("==")[0] for line in newer - older} == {"transformers"}
