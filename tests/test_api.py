"""The functions of `cgverify.api`."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from command_line import ROOT
from hugging_face import needs_upstream, table_owners
from sweeping import SMALL
from transformer_lens.model_bridge.supported_architectures.codegen import CodeGenArchitectureAdapter
from transformers import CodeGenForCausalLM

import cgverify
from cgverify.bridge import boot
from cgverify.bridge.booting import bridge_from
from cgverify.checkpoint.names import NANO
from cgverify.common.errors import ConfigError, RunFolderError, UnknownNameError, UsageError
from cgverify.plan.cases import DEFAULT_CASES
from cgverify.plan.yaml_plan import parse_plan
from cgverify.runs.folder import RunFolder
from cgverify.runs.reading import read_run

QUICK = {**SMALL, "layers": 0, "cases": "default", "dtypes": "float32"}


def test_sweep_returns_and_keeps_its_results(tmp_path: Path) -> None:
    result = cgverify.sweep(QUICK, tmp_path / "run", threads=1)
    result.assert_ok()
    assert result.ok
    assert set(result.findings["component"]) == {"embed", "blocks.0.ln1", "blocks.0.attn", "blocks.0.mlp.out"}
    assert result.summary["taps"].sum() == len(result.findings)
    loaded = cgverify.load_run(tmp_path / "run")
    assert loaded.findings.equals(result.findings)
    assert loaded.ok
    assert (tmp_path / "run" / "findings.csv").read_text() == result.findings.to_csv(index=False)


def test_assert_ok_raises_the_sentence_of_a_failure(tmp_path: Path) -> None:
    result = cgverify.sweep({**QUICK, "candidates": "faults:HeadsSwapped"}, tmp_path / "run", threads=1)
    with pytest.raises(
        AssertionError, match=r"codegen-nano blocks\.0\.attn, faults:HeadsSwapped.* mix breaks first, at hook_z"
    ) as raised:
        result.assert_ok()
    assert "cgverify all-components --model codegen-nano --component blocks.0.attn" in str(raised.value)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({**QUICK, "rotary_dims": 7}, "Nothing was compared: Hugging Face refuses"),
        ({**QUICK, "devices": "mps"}, "no mps device"),
    ],
)
def test_run_that_compared_nothing_or_had_errors_is_not_ok(
    tmp_path: Path, plan: dict[str, object], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        cgverify.sweep(plan, tmp_path / "run", threads=1).assert_ok()


def test_interrupted_run_is_not_ok(tmp_path: Path) -> None:
    cgverify.sweep(QUICK, tmp_path / "run", threads=1)
    run, results = read_run(tmp_path / "run")
    folder, _ = RunFolder.resume(tmp_path / "run", run)
    folder.drop([results[1].cell])
    folder.close()
    with pytest.raises(AssertionError, match="Only 3 of 4 cells were verified"):
        cgverify.load_run(tmp_path / "run").assert_ok()
    cgverify.sweep(QUICK, tmp_path / "run", threads=1, resume=True).assert_ok()


def test_baseline_is_loaded_as_its_run() -> None:
    baseline = ROOT / "reports" / "codegen-nano-cpu"
    result = cgverify.load_run(baseline)
    assert result.ok
    assert len(result.results) == result.planned > 300
    assert result.summary[["component", "case", "cells"]].equals(
        pd.read_csv(baseline / "summary.csv")[["component", "case", "cells"]]
    )


def test_loading_a_run_needs_no_torch() -> None:
    baseline = str(ROOT / "reports" / "codegen-nano-cpu")
    script = f"import sys, cgverify; print(cgverify.load_run({baseline!r}).ok, 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "True False\n"


def test_wrong_arguments_are_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'models'"):
        cgverify.sweep({"model": "codegen-nano"})
    with pytest.raises(UnknownNameError, match="Unknown keep_tensors 'some'"):
        cgverify.sweep(QUICK, keep_tensors="some")
    with pytest.raises(RunFolderError, match="holds no run"):
        cgverify.load_run(tmp_path)


@pytest.fixture(scope="module")
def reference() -> CodeGenForCausalLM:
    return CodeGenForCausalLM.from_pretrained(NANO, dtype=torch.bfloat16)


def test_checkpoint_is_verified_by_name() -> None:
    result = cgverify.verify(
        "codegen-nano", layers=0, components="attn", cases="default", dtypes=["float32", "float16"]
    )
    result.assert_ok()
    assert set(result.findings["dtype"]) == {"float32", "float16"}
    assert result.folder is None
    with pytest.raises(UnknownNameError, match="did you mean 'components'"):
        cgverify.verify("codegen-nano", component="attn")
    with pytest.raises(UnknownNameError, match="codegen-350M"):
        cgverify.verify("codegen-340M")


def test_bridge_in_memory_is_verified(reference: CodeGenForCausalLM) -> None:
    bridge = boot(copy.deepcopy(reference).train())
    axes = {"layers": [0, 3], "components": ["attn", "mlp.in", "block", "unembed"]}
    result = cgverify.verify(bridge, reference, **axes)
    result.assert_ok()
    assert set(result.findings["dtype"]) == {"bfloat16"}
    assert set(result.findings["case"]) == set(DEFAULT_CASES)
    assert {"blocks.0.attn", "blocks.3", "unembed"} <= set(result.findings["component"])
    assert bridge.blocks[0].attn.training, "left as it was"
    assert not reference.training
    with torch.no_grad():
        bridge.blocks[3].attn.q.weight[0, 0] += 1
    with pytest.raises(
        AssertionError, match=r"blocks\.3\.attn, bridge in bfloat16, case .*: project_q breaks first"
    ) as raised:
        cgverify.verify(bridge, reference, **axes).assert_ok()
    (call,) = set(
        re.findall(r"cgverify\.verify\(bridge, reference, layers=3, components='attn', .*\)", str(raised.value))
    )
    assert not eval(call).ok


@needs_upstream
def test_upstream_bridge_in_memory_fails(reference: CodeGenForCausalLM) -> None:
    bridge = bridge_from(copy.deepcopy(reference), CodeGenArchitectureAdapter)
    result = cgverify.verify(bridge, reference, layers=0, components="attn", cases="default")
    assert "missing" in set(result.findings["verdict"])
    assert not result.ok


def test_wrong_pairs_and_their_axes_are_reported(reference: CodeGenForCausalLM) -> None:
    model = copy.deepcopy(reference)
    bridge = boot(model)
    for arguments, message in (
        ((bridge, model), "boot it over a copy"),
        ((bridge, bridge), "boot it over a copy"),
        ((reference, copy.deepcopy(reference)), "is not a bridge"),
        ((bridge,), "a bridge and its reference"),
    ):
        with pytest.raises(UsageError, match=message):
            cgverify.verify(*arguments)
    sharing = copy.deepcopy(reference)
    sharing.lm_head.weight = bridge.unembed.weight
    with pytest.raises(UsageError, match="share weights in memory"):
        cgverify.verify(bridge, sharing)
    for axes, message in (
        ({"dtypes": "float32"}, "dtypes is that of the bridge"),
        ({"exclude": [{"seeds": 1}]}, "takes no exclude"),
        ({"models": "x"}, "takes no models"),
        ({"weights": "random"}, "weights is for a model's name"),
        ({"threads": 0}, "threads is 0"),
    ):
        with pytest.raises(UsageError, match=message):
            cgverify.verify(bridge, reference, **axes)


@pytest.mark.parametrize("axis", ["exclude", "include", "limits", "models"])
def test_verify_refuses_rules_and_limits(axis: str) -> None:
    with pytest.raises(UsageError, match=rf"verify takes no {axis}: give a plan with it to cgverify\.sweep"):
        cgverify.verify("codegen-nano", **{axis: []})


def test_reference_of_a_name_is_refused(reference: CodeGenForCausalLM) -> None:
    with pytest.raises(UsageError, match="takes a reference only for a bridge"):
        cgverify.verify("codegen-nano", reference)  # type: ignore[call-overload]


@pytest.mark.parametrize("number", [0, -1, "2", 1.5, True])
@pytest.mark.parametrize("name", ["jobs", "threads"])
def test_wrong_counts_are_reported(name: str, number: object) -> None:
    with pytest.raises(UsageError, match=f"{name} is {number!r}: give a whole number from 1 on"):
        cgverify.sweep(QUICK, **{name: number})


def test_jobs_with_a_scheduler_are_refused() -> None:
    with pytest.raises(UsageError, match="cannot be combined with --scheduler"):
        cgverify.sweep(QUICK, scheduler="tcp://127.0.0.1:1", jobs=2)


def test_paths_tuples_and_ranges_are_accepted() -> None:
    result = cgverify.verify(NANO, layers=range(2), components=("ln1",), cases=("default",))
    result.assert_ok()
    assert set(result.findings["component"]) == {"blocks.0.ln1", "blocks.1.ln1"}
    with pytest.raises(ConfigError, match="begin with `models"):
        cgverify.sweep([NANO])  # type: ignore[arg-type]


def test_examples_of_the_documentation_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "sweep.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(example, {})
    assert (tmp_path / "runs" / "attention" / "findings.csv").exists()
    (plan,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert parse_plan(yaml.safe_load(plan)).all_requests()


def test_table_of_the_bridges_own_model_is_verified(reference: CodeGenForCausalLM) -> None:
    model = copy.deepcopy(reference)
    bridge = boot(model)
    for owner in table_owners(model):
        owner.embed_positions.mul_(1 + 1e-4)
    result = cgverify.verify(bridge, reference, layers=0, components="attn", cases="default")
    assert set(result.findings.loc[result.findings["verdict"] == "diverged", "stage"]) == {"rope"}
