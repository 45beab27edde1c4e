"""Whose fault: what is neither the candidate's nor Hugging Face's is an error, which blames nobody and is not green."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from not_at_fault import (
    mistyped_key,
    mistyped_shape,
    more_than_the_cpu_has,
    operation_that_the_device_lacks,
    out_of_memory,
)
from torch import Tensor
from verifying import failed, findings
from verifying import verify as verified

import cgverify
from cgverify.common.memory import is_shortage
from cgverify.common.records import CellResult, Verdict
from cgverify.observe import inputs, stages, taps
from cgverify.observe.fault import is_ours, lacks_operation
from cgverify.oracle import exact
from cgverify.report.outcome import exit_code
from cgverify.verification import judge

verify = partial(verified, sentences=True)  # a fault may come up while a failure is explained

FAULTS: dict[str, tuple[Callable[..., Any], str]] = {
    "out of memory": (out_of_memory, "memory is short: OutOfMemoryError"),
    "out of memory on the CPU": (more_than_the_cpu_has, "memory is short: RuntimeError"),
    "operation lacking": (operation_that_the_device_lacks, "this device lacks an operation: NotImplementedError"),
    "bug with shapes": (mistyped_shape, "cgverify failed, which is a fault of its own: RuntimeError"),
    "bug with a key": (mistyped_key, "cgverify failed, which is a fault of its own: KeyError"),
}

PLACES: dict[str, tuple[Any, str]] = {
    "oracle": (stages, "rope"),
    "oracle of products": (stages, "products"),
    "inputs": (inputs, "slice_tokens"),
    "comparison": (judge, "findings_of"),
    "hooks of ours": (taps, "same_tensor"),
}


def errors_alone(results: list[CellResult]) -> list[str]:
    """Return the messages of results that are all errors."""
    assert {finding.verdict for finding in findings(results)} == {Verdict.ERROR}
    assert not any(result.blame for result in results)
    assert exit_code(results) == 3
    return [finding.message for finding in findings(results)]


@pytest.mark.parametrize("fault", FAULTS)
def test_oracle_that_fails_is_an_error(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raising, message = FAULTS[fault]
    monkeypatch.setattr(stages, "rope", raising)
    for said in errors_alone(verify(cases=["default"], components=["attn"])):
        assert said.startswith(message)


@pytest.mark.parametrize("place", PLACES)
def test_fault_of_ours_is_an_error_wherever_it_is(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name = PLACES[place]
    monkeypatch.setattr(module, name, mistyped_shape)
    if place == "inputs":
        monkeypatch.setattr("cgverify.observe.cases.decode.slice_tokens", mistyped_shape)
    errors_alone(verify(cases=["decode"], components=["attn"]))


OFTEN = ("out of memory", "bug with a key")


@pytest.mark.parametrize(
    "fault", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in FAULTS]
)
def test_whole_model_that_cannot_be_judged_is_an_error(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "gelu_new", FAULTS[fault][0])
    results = verify(cases=["model"], components=["model"], layers=[0])
    assert Verdict.ERROR in {finding.verdict for finding in findings(results)}
    assert not failed(results)
    assert exit_code(results) == 3


def test_exact_model_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(exact.FORWARDS, "block", mistyped_shape)
    assert exit_code(verify(cases=["model"], components=["block"])) == 3


def test_oracle_that_fails_leaves_other_cells_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "gelu_new", out_of_memory)
    results = verify(cases=["default"], components=["attn", "mlp"])
    by_kind = {result.cell.kind: {finding.verdict for finding in result.findings} for result in results}
    assert by_kind["mlp"] == {Verdict.ERROR}
    assert by_kind["attn"] <= {Verdict.BITWISE, Verdict.ULP, Verdict.BOUNDED}


def test_cause_that_cannot_be_found_leaves_the_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "cause_of", out_of_memory)
    results = verify(cases=["default"], components=["attn"], candidates=["faults:HalfRotation"])
    (result,) = results
    assert result.verdict is Verdict.DIVERGED
    assert "rope" in {finding.stage for finding in failed(results)}
    assert [finding.message for finding in result.findings if finding.verdict is Verdict.ERROR] == [
        "what was found is not explained: memory is short: OutOfMemoryError: CUDA out of memory. Tried to allocate "
        "20.00 GiB"
    ]


# --- what the candidate raises ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("candidate", ["OutOfMemory", "InputsOutOfMemory", "LacksOperation"])
def test_machine_that_fails_a_candidate_is_an_error(candidate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    errors_alone(verify(cases=["default"], components=["attn"], candidates=[f"not_at_fault:{candidate}"]))


@pytest.mark.parametrize("candidate", ["Endless", "Unfinished", "WrongShapes"])
def test_what_a_candidate_raises_is_its_own(candidate: str) -> None:
    results = verify(cases=["default"], components=["attn"], candidates=[f"not_at_fault:{candidate}"])
    assert "the candidate raised" in failed(results)[0].message


# --- taps of another form ---------------------------------------------------------------------------------------------


MISFITS = {
    "merged_heads": ("scores", "hook_rot_q has shape [2, 8, 192] where [2, 8, 8, 24] is right"),
    "one_token_less": ("mix", "hook_v has shape [2, 7, 8, 24] where [2, 8, 8, 24] is right"),
    "whole_numbers": ("softmax", "hook_attn_scores is int64 where float32 is right"),
    "complex_pattern": ("mix", "hook_pattern is complex64 where float32 is right"),
}


@pytest.mark.parametrize("candidate", MISFITS)
def test_misfit_tap_is_named_with_both_forms(candidate: str) -> None:
    stage, problem = MISFITS[candidate]
    (result,) = verify(cases=["default"], components=["attn"], candidates=[f"not_at_fault:{candidate}"])
    by_stage = {finding.stage: finding for finding in result.findings}
    tap = problem.split()[0]
    assert next(finding for finding in result.findings if finding.tap == tap).verdict is Verdict.DIVERGED
    assert by_stage[stage].r is None
    assert Verdict.ERROR not in {finding.verdict for finding in result.findings}


def test_stage_behind_a_misfit_says_which_tap() -> None:
    """The scores that are shown are wrong too: they differ from Hugging Face's, and cannot be checked."""
    results = verify(cases=["default"], components=["attn"], candidates=["not_at_fault:merged_and_scored_wrongly"])
    (scores,) = [finding for finding in failed(results) if finding.tap == "hook_attn_scores"]
    problem = MISFITS["merged_heads"][1]
    assert scores.message.endswith(f"and scores cannot be checked, because {problem}")


def test_hook_that_shows_no_tensor_is_the_candidates_fault() -> None:
    results = verify(cases=["default"], components=["attn"], candidates=["not_at_fault:no_tensor"])
    assert "hook_attn_scores is shown a list, not a tensor" in {finding.message for finding in failed(results)}


def test_weights_under_other_names_are_not_compared() -> None:
    asked = {"components": ["unembed"], "candidates": ["not_at_fault:own_names"]}
    results = verify(cases=["weights"], **asked)
    (finding,) = findings(results)
    assert finding.verdict is Verdict.UNSUPPORTED
    assert finding.message.startswith("the candidate keeps its weights where they are not known")
    assert exit_code(results) == 5
    assert exit_code(verify(cases=["default", "weights"], **asked)) == 0


# --- what Hugging Face refuses ----------------------------------------------------------------------------------------

UNUSUAL: list[dict[str, Any]] = [
    {"pad_token_id": -1},
    {"bos_token_id": -1},
    {"pad_token_id": 10**6, "bos_token_id": None},
    {"return_dict": False},
    {"use_cache": False},
    {"output_attentions": True, "output_hidden_states": True},
]


@pytest.mark.parametrize("changes", UNUSUAL)
def test_unusual_config_is_verified_whole(folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    tokens = tmp_path / "tokens"
    tokens.write_text("1 2 3 4 5 6 7")
    result = cgverify.verify(folder, components=["embed", "attn"], cases=["default", "stress", "decode"], layers=0)
    assert result.ok
    assert not (set(result.findings["verdict"]) - {"bitwise", "ulp", "bounded"})


def ids_below_zero(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"input_ids": given["input_ids"] - 256}


def test_input_that_is_no_row_of_a_table_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "cgverify.observe.components.stress_tokens", lambda *_: lambda given, _: {"input_ids": given["input_ids"] - 256}
    )
    errors_alone(verify(cases=["stress"], components=["embed"]))


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("x"), RuntimeError("MPS backend out of memory")]
)
def test_shortage_of_memory_is_known_by_its_words(error: Exception) -> None:
    assert is_shortage(error)
    assert is_ours(error)


def test_words_of_other_errors_are_not_a_lack() -> None:
    assert not is_shortage(RuntimeError("shape mismatch"))
    assert not lacks_operation(NotImplementedError("rotation comes later"))
    assert not lacks_operation(TypeError("unexpected keyword"))
    assert lacks_operation(RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'"))
    assert lacks_operation(TypeError("the MPS framework doesn't support float64"))
