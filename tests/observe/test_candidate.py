"""`--bridge`: what can be named, and what is told otherwise."""

from __future__ import annotations

import gc
import linecache
import sys
import weakref
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge.generalized_components import CodeGenAttentionBridge as Upstream
from transformers import CodeGenForCausalLM
from verifying import failed, findings, of, verify

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.bridge.booting import CodeGenAdapter
from cgverify.common.errors import CandidateError
from cgverify.common.records import CellResult, Verdict
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


class LooksAtItsWeights(CodeGenAttentionBridge):
    """Checks its weights when it is wired, and keeps a tensor where its config says that the bridge is."""

    def set_original_component(self, original_component: torch.nn.Module) -> None:
        assert all(bool(weight.isfinite().all()) for weight in original_component.parameters())
        super().set_original_component(original_component)
        assert self.config.n_layers == 5
        self.scale = torch.ones((), device=self.config.device)

    def _output(self, z: torch.Tensor) -> torch.Tensor:
        return super()._output(z) * self.scale.to(z.dtype)


class PreparesLayer2(CodeGenAdapter):  # type: ignore[misc,valid-type]
    def prepare_model(self, hf_model: Any) -> None:
        super().prepare_model(hf_model)
        hf_model.transformer.h[2].attn.out_proj.weight.data *= 1.5


def layer_2_alone(bridge: Any) -> Any:
    assert [block.attn.original_component.layer_idx for block in bridge.blocks] == list(range(5))
    assert {weight.dtype for weight in bridge.parameters()} == {bridge.cfg.dtype}
    bridge.blocks[2].attn.o.original_component.weight.data *= 1.5
    return bridge


def every_weight_is_finite(bridge: Any) -> Any:
    assert all(bool(weight.isfinite().all()) for weight in bridge.parameters())
    return bridge


def layer_1_has_weights_of_layer_2(bridge: Any) -> Any:
    bridge.blocks[1].attn.o = bridge.blocks[2].attn.o
    return bridge


def layer_2_added_to_layer_1(bridge: Any) -> Any:
    output, other = (bridge.blocks[layer].attn.o.original_component for layer in (1, 2))
    doubled = other.weight * 2
    output.register_forward_hook(lambda _, args, found: found + torch.nn.functional.linear(args[0], doubled))
    return bridge


IN_VIEW = ["LooksAtItsWeights", "PreparesLayer2", "layer_2_alone"]
OUT_OF_VIEW = {"every_weight_is_finite": 6, "layer_1_has_weights_of_layer_2": 2, "layer_2_added_to_layer_1": 2}
"""The number of cells in which each computes with weights out of view."""


@pytest.fixture(scope="module")
def of_several_layers() -> list[CellResult]:
    return verify(
        candidates=[f"{__name__}:{name}" for name in (*IN_VIEW, *OUT_OF_VIEW)],
        dtypes=["bfloat16"],
        layers=[1, 2],
        components=["embed", "attn", "attn.o", "unembed"],
        cases=["default"],
    )


@pytest.mark.parametrize("name", IN_VIEW)
def test_candidate_finds_every_block_and_its_own_weights(name: str, of_several_layers: list[CellResult]) -> None:
    own = of(of_several_layers, candidate=f"{__name__}:{name}")
    expected = set() if name == "LooksAtItsWeights" else {"blocks.2.attn", "blocks.2.attn.o"}
    assert len(own) == 6
    assert {result.cell.component for result in own if failed([result])} == expected


@pytest.mark.parametrize("name", OUT_OF_VIEW)
def test_computing_out_of_view_is_a_sentence_and_no_blame(name: str, of_several_layers: list[CellResult]) -> None:
    own = of(of_several_layers, candidate=f"{__name__}:{name}")
    wrong = [finding for finding in findings(own) if finding.verdict is Verdict.ERROR]
    assert failed(own) == []
    assert len(wrong) == OUT_OF_VIEW[name]
    assert all(finding.message.startswith("Weights that are not in view were computed with") for finding in wrong)


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


def test_class_of_a_notebook_has_the_source_of_its_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook keeps its cells in Python's cache of lines, and its module has no file."""
    cells = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", cells)
    found = []
    for number in (1, 2):
        source = (
            "from cgverify import CodeGenAttentionBridge\n"
            f"class Mine(CodeGenAttentionBridge):\n    def scale(self): return {number}\n"
            f"def change(bridge): return bridge * {number}\n"
        )
        file = f"<cell {number}>"
        monkeypatch.setitem(linecache.cache, file, (len(source), None, source.splitlines(keepends=True), file))
        exec(compile(source, file, "exec"), vars(cells))
        found += [find_candidate("__main__:Mine").source, find_candidate("__main__:change").source]
    assert found[0] == found[1] != found[2] == found[3]
    assert all(found)
