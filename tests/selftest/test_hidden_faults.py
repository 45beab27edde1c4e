"""Every hidden fault changes what a user sees, and the table of those that no case sees cannot be wrong unnoticed."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import CodeGenForCausalLM

from cgverify.bridge import boot
from cgverify.checkpoint.names import NANO
from cgverify.checkpoint.resolve import resolve
from cgverify.observe.candidate import find_candidate
from cgverify.plan.axes import DTYPES
from cgverify.plan.cases import SAMPLED
from cgverify.selftest.candidates import HiddenFault, Unseen
from cgverify.selftest.hidden_faults import hidden_results
from cgverify.selftest.report import sections
from cgverify.selftest.result import Outcome, SelfTestResult
from cgverify.selftest.seeded import HIDDEN
from cgverify.selftest.seeded.unseen import UNSEEN
from cgverify.selftest.self_test import MODEL, exit_code
from cgverify.verification.checkpoint_verifier import CheckpointVerifier
from cgverify.verification.judge import Judge


@pytest.fixture(scope="module")
def model() -> CodeGenForCausalLM:
    return CodeGenForCausalLM.from_pretrained(NANO, dtype=torch.float32).eval()


def differs(one: Any, other: Any) -> bool:
    """Whether two results differ by more than roundings."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same_form = one.shape == other.shape and one.dtype == other.dtype
        return not same_form or not torch.allclose(one, other, rtol=1e-3, atol=1e-3 * scale(other), equal_nan=True)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) != len(other) or any(map(differs, one, other))
    return type(one) is not type(other) or bool(one != other)


def scale(tensor: torch.Tensor) -> float:
    finite = tensor[tensor.isfinite() & (tensor.abs() < 1e30)]
    return float(finite.detach().double().abs().mean()) if finite.numel() else 0.0


def hidden(name: str) -> HiddenFault:
    return next(fault for fault in HIDDEN if fault.name == name)


def results(fault: HiddenFault, *dtypes: str, quick: bool) -> list[SelfTestResult]:
    source = resolve(MODEL)
    verifier = CheckpointVerifier(
        source, {fault.bridge: find_candidate(fault.bridge)}, judge=Judge(with_sentence=False)
    )
    return list(hidden_results([fault], dtypes, ["cpu"], quick, verifier.verify_all, source))


@pytest.mark.parametrize(
    "name", ["EmptySlotsShown", "OneFlagAtATime", "AttentionAtResidualRate", "mlp_dropout_in_eval", "DeafInTraining"]
)
def test_plain_run_finds_faults_of_hooks_flags_dropout_and_caches(name: str) -> None:
    (result,) = results(hidden(name), "float32", quick=False)
    assert result.by_plain
    assert set(result.failed_cases) <= set(SAMPLED)


def test_fault_of_a_sampled_case_in_full_is_not_found_by_a_plain_run() -> None:
    found = results(hidden("branch_flag_ignored_in_training"), "float32", quick=False)
    assert [(result.by_plain, result.failed_cases) for result in found] == [(False, ("patched",))]
    (tables,) = (each for each in sections(found) if each.title == "hidden faults, by what shows them")
    assert tables.rows == [["float32", "cpu", "dropout flags", "1", "0", "1", "0", "0", "0"]]


def test_marked_fault_that_a_case_sees_is_a_stale_mark() -> None:
    marked = replace(hidden("ReadByAddress"), unseen=Unseen("No input has other strides.", ("float32",)))
    stale, caught = both = results(marked, "float32", "float16", quick=True)
    assert (stale.outcome, caught.outcome) == (Outcome.STALE, Outcome.CAUGHT)
    assert exit_code(both) == 1
    assert exit_code([caught]) == 0
    assert caught.rightly_blamed
    assert next(iter(sections([stale]))).title == (
        "stale mark ReadByAddress in float32 on cpu: data found it. Remove float32 from its row in "
        "cgverify/selftest/seeded/unseen.py."
    )


def test_hidden_fault_that_no_case_sees_fails_unless_marked() -> None:
    fault = replace(hidden("OneTokenReadsTheLast64"), cases=("default",))
    (missed,) = results(fault, "float32", quick=True)
    (unseen,) = results(replace(fault, unseen=Unseen("No case is that long.")), "float32", quick=True)
    assert (missed.outcome, unseen.outcome) == (Outcome.MISSED, Outcome.UNSEEN)
    assert exit_code([missed]) == 1
    assert exit_code([unseen]) == 0


def test_table_of_unseen_faults_has_known_names_and_dtypes() -> None:
    assert set(UNSEEN) <= {fault.name for fault in HIDDEN}
    assert {dtype for unseen in UNSEEN.values() for dtype in unseen.dtypes} <= set(DTYPES)


@pytest.mark.slow
@pytest.mark.parametrize("fault", HIDDEN, ids=lambda fault: fault.name)
def test_demonstration_differs_from_the_correct_bridge(fault: HiddenFault, model: CodeGenForCausalLM) -> None:
    bridges = [boot(copy.deepcopy(model)), boot(copy.deepcopy(model))]
    bridges.append(find_candidate(fault.bridge).boot(copy.deepcopy(model)))
    with torch.no_grad():
        correct, again, wrong = map(fault.shown_by, bridges)
    assert not differs(correct, again), "the demonstration is not repeatable"
    assert differs(wrong, correct)
