"""`--bridge`: what can be named, and what is told otherwise."""

from __future__ import annotations

import gc
import weakref
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge.generalized_components import CodeGenAttentionBridge as Upstream
from transformers import CodeGenForCausalLM
from verifying import failed, verify

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.common.errors import CandidateError
from cgverify.observe.candidate import find_candidate

BOOTED: list[weakref.ref[Any]] = []
ALIVE: list[int] = []


def counted(bridge: Any) -> Any:
    """A candidate that notes how many before it are still there."""
    ALIVE.append(sum(before() is not None for before in BOOTED))
    BOOTED.append(weakref.ref(bridge))
    return bridge


def changed(bridge: Any) -> Any:
    """A candidate as a function: the activation is another."""
    bridge.blocks[0].mlp.original_component.act = torch.nn.GELU()
    return bridge


NOT_A_BRIDGE = 3


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("cgverify", CodeGenAttentionBridge),
        ("transformer_lens", Upstream),
        ("cgverify.bridge:CodeGenAttentionBridge", CodeGenAttentionBridge),
        ("cgverify.bridge.booting:CodeGenAdapter", CodeGenAttentionBridge),
        ("transformer_lens.model_bridge.generalized_components:CodeGenAttentionBridge", Upstream),
        (f"{__name__}:changed", CodeGenAttentionBridge),
    ],
)
def test_names_lead_to_bridges(model: CodeGenForCausalLM, name: str, attention: type) -> None:
    candidate = find_candidate(name)
    assert candidate.name == name
    assert type(candidate.boot(model).blocks[0].attn) is attention


def test_a_function_gets_the_booted_bridge(model: CodeGenForCausalLM) -> None:
    bridge = find_candidate(f"{__name__}:changed").boot(model)
    assert isinstance(bridge.blocks[0].mlp.original_component.act, torch.nn.GELU)


def test_modules_of_the_current_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_bridge.py").write_text("def same(bridge):\n    return bridge\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    assert find_candidate("my_bridge:same").change is not None


def no_bridge(bridge: Any) -> None:
    pass


def test_a_function_must_return_the_bridge(model: CodeGenForCausalLM) -> None:
    with pytest.raises(CandidateError, match="returned NoneType instead of a bridge"):
        find_candidate(f"{__name__}:no_bridge").boot(model)


def test_the_source_of_a_candidate_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_candidate(f"{__name__}:changed").source
    assert find_candidate(f"{__name__}:changed").source == find_candidate(f"{__name__}:no_bridge").source
    assert find_candidate("cgverify").source == ""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("cgverifi", "module:name"),
        ("nowhere:Thing", "No module named 'nowhere'"),
        ("faults:Nothing", "no attribute 'Nothing'"),
        (f"{__name__}:NOT_A_BRIDGE", "is not a bridge"),
        ("pathlib:Path", "is not a bridge"),
    ],
)
def test_what_is_no_bridge_is_told(name: str, told: str) -> None:
    with pytest.raises(CandidateError, match=told):
        find_candidate(name)


@pytest.mark.parametrize("case", ["default", "text"])
def test_a_bridge_is_gone_before_the_next_is_booted(case: str) -> None:
    """Each has a copy of the weights in view, and memory is to be that of one block."""
    noted = import_module(__name__)  # as `--bridge` imports it
    noted.BOOTED.clear()
    noted.ALIVE.clear()
    gc.disable()
    try:
        results = verify(candidates=[f"{__name__}:counted"], layers=range(5), components=["block"], cases=[case])
    finally:
        gc.enable()
    assert failed(results) == []
    assert len(noted.ALIVE) >= 5
    assert set(noted.ALIVE) == {0}
