"""Every hidden fault changes what a user sees: its demonstration differs from that of the correct bridge."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import CodeGenForCausalLM

from cgverify.bridge import boot
from cgverify.checkpoint.names import NANO
from cgverify.observe.candidate import find_candidate
from cgverify.selftest.candidates import HiddenFault
from cgverify.selftest.seeded import HIDDEN


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


@pytest.mark.slow
@pytest.mark.parametrize("fault", HIDDEN, ids=lambda fault: fault.name)
def test_demonstration_differs_from_the_correct_bridge(fault: HiddenFault, model: CodeGenForCausalLM) -> None:
    bridges = [boot(copy.deepcopy(model)), boot(copy.deepcopy(model))]
    bridges.append(find_candidate(fault.bridge).boot(copy.deepcopy(model)))
    with torch.no_grad():
        correct, again, wrong = map(fault.shown_by, bridges)
    assert not differs(correct, again), "the demonstration is not repeatable"
    assert differs(wrong, correct)
