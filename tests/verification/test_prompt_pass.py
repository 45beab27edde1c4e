"""A prompt's pass through the model: the carried hidden states are the model's own, whichever cells are judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest
import torch
from hugging_face import TABLE_PER_MODEL, eager, needs_upstream
from transformers import CodeGenForCausalLM
from transformers.models.codegen import modeling_codegen
from verifying import ALL_DTYPES, failed, findings, nano_cells, of, verify

from cgverify.checkpoint import window
from cgverify.checkpoint.names import NANO
from cgverify.checkpoint.resolve import resolve
from cgverify.checkpoint.window import ModelVariant, Window
from cgverify.common.errors import WeightsError
from cgverify.common.records import Cell, CellResult, Finding, Prompt, Verdict
from cgverify.observe.candidate import find_candidate
from cgverify.observe.run import reference_parameters
from cgverify.oracle import exact
from cgverify.plan.axes import Axes
from cgverify.plan.cases import CARRIED, CASE_KINDS
from cgverify.selftest.variants import VARIANTS
from cgverify.verification.checkpoint_verifier import CheckpointVerifier
from cgverify.verification.diagnosis.mismatch import CandidateStage
from cgverify.verification.prompt_pass import cells_on_the_way, kind_of, view_of, views

PROMPT = Prompt(tokens=tuple(b"for x in y:\n"), origin="a test")
TOKENS = torch.tensor([PROMPT.tokens])
ENDS = ["embed", "block", "ln_final", "unembed"]
CASES_OF_PROMPT: dict[str, Any] = {"cases": ["text", "model"], "layers": range(5), "prompt": PROMPT}

Given = dict[tuple[str, str, str], torch.Tensor]


@pytest.fixture(scope="module")
def given() -> Given:
    """The float32 inputs of the reference by case, component and step; each cell was run once."""
    return {}


@pytest.fixture(scope="module")
def ours(given: Given) -> list[CellResult]:
    def keep(finding: Finding, stage: CandidateStage) -> Finding:
        if stage.cell.dtype == "float32":
            for name in ("given.hidden_states", "given.input_ids"):
                if (tensor := stage.step.reference.tensors.get(name)) is not None:
                    given[stage.cell.case, stage.cell.component, stage.step.name] = tensor
        return finding

    kinds = [kind for kind in CASE_KINDS["text"] if kind != "model"]
    return verify(dtypes=ALL_DTYPES, components=kinds, keep=keep, **CASES_OF_PROMPT)


@pytest.fixture(scope="module")
def hugging_face() -> Any:
    model = eager(CodeGenForCausalLM.from_pretrained(NANO, dtype=torch.float32).eval())
    with torch.no_grad():
        return model(TOKENS, output_hidden_states=True)


# --- what is carried --------------------------------------------------------------------------------------------------


def test_bridge_passes_in_every_layer(ours: list[CellResult]) -> None:
    assert failed(ours) == []
    for result in ours:
        compared = [f for f in result.findings if f.reference_r is not None]
        if result.cell.dtype != "float64":
            assert {f.verdict for f in compared} == {Verdict.BITWISE}, result.cell


@pytest.mark.usefixtures("ours")
def test_text_gives_blocks_the_models_hidden_states(given: Given, hugging_face: Any) -> None:
    assert given["text", "embed", "forward"].equal(TOKENS)
    for layer in range(5):
        assert given["text", f"blocks.{layer}", "forward"].equal(hugging_face.hidden_states[layer])
    assert given["text", "unembed", "forward"].equal(hugging_face.hidden_states[5])


@pytest.mark.usefixtures("ours")
def test_text_gives_components_the_blocks_tensors(given: Given) -> None:
    model = eager(CodeGenForCausalLM.from_pretrained(NANO, dtype=torch.float32).eval())
    block = model.transformer.h[3]
    seen = {}
    paths = {"ln1": "ln_1", "attn.o": "attn.out_proj", "mlp": "mlp", "mlp.in": "mlp.fc_in", "mlp.out": "mlp.fc_out"}
    for kind, path in paths.items():
        block.get_submodule(path).register_forward_pre_hook(lambda _, args, kind=kind: seen.update({kind: args[0]}))
    with torch.no_grad():
        model(TOKENS)
    for kind, tensor in seen.items():
        assert given["text", f"blocks.3.{kind}", "forward"].equal(tensor), kind
    for kind in ("attn", "attn.q", "attn.k", "attn.v"):
        assert given["text", f"blocks.3.{kind}", "forward"].equal(seen["mlp"]), kind


def test_model_case_takes_last_tokens_one_by_one(ours: list[CellResult], given: Given) -> None:
    assert [given["model", "embed", step].shape[1] for step in ("prefill", "token 1", "token 2")] == [10, 1, 1]
    cached = {f.tap for f in findings(of(ours, case="model", kind="block", dtype="float32")) if f.step == "token 2"}
    assert {"attn.cache_keys", "attn.cache_values"} <= cached


def test_exact_states_match_hugging_face_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's scores are patched to float64; it computes them in float32."""

    def attend(_: Any, query: Any, key: Any, value: Any, attention_mask: Any = None) -> Any:
        pattern = ((query @ key.mT + attention_mask) / query.shape[-1] ** 0.5).softmax(-1)
        return pattern @ value, pattern

    def attend_by_position(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **_: Any) -> Any:
        output, pattern = attend(module, query, key, value, attention_mask)
        return output.transpose(1, 2), pattern

    if TABLE_PER_MODEL:
        monkeypatch.setattr(modeling_codegen, "eager_attention_forward", attend_by_position)
    else:
        monkeypatch.setattr(modeling_codegen.CodeGenAttention, "_attn", attend)
    model = eager(CodeGenForCausalLM.from_pretrained(NANO, dtype=torch.float64).eval())
    with torch.no_grad():
        wanted = model(TOKENS).logits
    source = resolve("codegen-nano")
    window = Window(source)
    state = TOKENS
    for view in views(source.config.n_layer):
        window.show(view)
        parameters = reference_parameters(
            window.model(ModelVariant(torch.float64, torch.device("cpu"), source.config.rotary_dim))
        )
        state = exact.FORWARDS[kind_of(view)](state, parameters)
    assert float((state - wanted).abs().max()) < 1e-11 * float(wanted.abs().max())


# --- some cells alone -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [{"layers": [3]}, {"layers": [4], "components": ["mlp.out", "block"]}])
def test_single_layers_give_the_findings_of_all_layers(ours: list[CellResult], chosen: dict[str, Any]) -> None:
    asked = {**CASES_OF_PROMPT, "components": [kind for kind in CASE_KINDS["text"] if kind != "model"], **chosen}
    alone = verify(dtypes=["float32"], **asked)
    everything = {result.cell.id: result.findings for result in ours}
    assert {result.cell.layer for result in alone} <= {None, *chosen["layers"]}
    assert len(alone) == len(planned(**{k: v for k, v in asked.items() if k != "prompt"}))
    for result in alone:
        assert result.findings == everything[result.cell.id], result.cell


def test_cells_on_the_way_are_those_before_and_not_given() -> None:
    asked = [c for c in planned(cases=["model"]) if c.layer == 2 or c.kind == "embed"]
    asked = [cell for cell in asked if cell.kind in ("embed", "block") or cell.layer == 2]
    assert [view_of(cell) for cell in cells_on_the_way(asked, 5)] == [0, 1]
    assert list(cells_on_the_way(planned(cases=["text"], layers=[4]), 5)) == []


def planned(**axes: Any) -> list[Cell]:
    return nano_cells(Axes(**axes), PROMPT)


# --- what goes wrong --------------------------------------------------------------------------------------------------


def first_row_of_spaces_missing(bridge: Any) -> Any:
    """The embedding of the space character is zero."""
    bridge.embed.original_component.weight.data[ord(" ")] = 0
    return bridge


def test_text_finds_a_row_that_random_tokens_miss() -> None:
    name = f"{__name__}:first_row_of_spaces_missing"
    results = verify(candidates=[name], cases=["default", "stress", "text"], components=["embed"], prompt=PROMPT)
    assert {r.cell.case for r in results if failed([r])} == {"text"}


@pytest.fixture(scope="module")
def upstream() -> list[CellResult]:
    return verify(candidates=["transformer_lens"], dtypes=["float32", "bfloat16"], components=ENDS, **CASES_OF_PROMPT)


@needs_upstream
def test_upstream_drift_grows_with_depth_and_does_not_fail(upstream: list[CellResult]) -> None:
    own = of(upstream, dtype="float32", case="model")
    assert {finding.verdict for finding in failed(own)} == {Verdict.MISSING}
    drift = {r.cell.layer: f.max_abs or 0.0 for r in own for f in r.findings if f.stage == CARRIED}
    assert 0 < drift[0] < drift[4] < 1e-3


@needs_upstream
def test_components_behind_one_that_raised_fail_uncompared(upstream: list[CellResult]) -> None:
    own = of(upstream, dtype="bfloat16", case="model")
    first, *later = [result for result in own if result.cell.kind != "embed"]
    assert any(finding.tap == "raised" for finding in first.findings)
    for result in later:
        (found,) = result.findings
        assert found.verdict is Verdict.DIVERGED
        assert found.message.startswith("the candidate raised in blocks.0: RuntimeError")
    assert len(of(upstream, dtype="bfloat16", case="text", kind="unembed")) == 1


def without_its_last_norm(bridge: Any) -> Any:
    """The bridge has no ln_final."""
    del bridge.ln_final
    return bridge


def test_components_behind_a_missing_one_fail_uncompared() -> None:
    name = f"{__name__}:without_its_last_norm"
    results = verify(candidates=[name], cases=["model"], components=["ln_final", "unembed"], prompt=PROMPT)
    messages = {result.cell.kind: [finding.message for finding in failed([result])] for result in results}
    assert [message.partition(":")[0] for message in messages["ln_final"]] == ["the candidate raised in boot"]
    (behind,) = messages["unembed"]
    assert behind.startswith("the candidate raised in ln_final: AttributeError")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_correct_variants_pass_on_real_text(dtype: str) -> None:
    names = [variant.bridge for variant in VARIANTS]
    cases = {**CASES_OF_PROMPT, "layers": [0, 4]}
    results = verify(candidates=names, dtypes=[dtype], components=["attn", "block", "unembed"], **cases)
    assert failed(results) == []
    carried = [f for f in findings(results) if f.stage == CARRIED]
    assert {Verdict.BITWISE, Verdict.BOUNDED} <= {finding.verdict for finding in carried}


class Damaged:
    """codegen-nano with a second layer that can only be read a few times."""

    def __init__(self, readings: int) -> None:
        whole = resolve("codegen-nano")
        self.config, self.origin, self.digest, self._read = whole.config, whole.origin, whole.digest, whole.read
        self._readings, self._left = Counter[str](), readings

    def read(self, name: str, shape: torch.Size) -> torch.Tensor:
        self._readings[name] += 1
        if name.startswith("transformer.h.1.") and self._readings[name] > self._left:
            raise WeightsError(f"Cannot read {name}.")
        return self._read(name, shape)


def verified(source: Any, plan: Sequence[Cell], *candidates: str) -> list[CellResult]:
    found = {name: find_candidate(name) for name in candidates or ("cgverify",)}
    results = list(CheckpointVerifier(source, found, prompt=PROMPT).verify_all(plan))
    assert Counter(result.cell.id for result in results) == Counter(cell.id for cell in plan)
    return results


def test_unreadable_weights_end_the_prompt_pass() -> None:
    for result in verified(Damaged(0), planned(cases=["default", "text", "model"], layers=[0, 1, 2])):
        behind = result.cell.layer in (1, 2) or result.cell.kind in ("ln_final", "unembed", "model")
        lost = result.cell.layer == 1 or (behind and result.cell.case != "default")
        assert (result.verdict is Verdict.ERROR) == lost, result.cell


def test_weights_unreadable_for_the_whole_model_are_its_error() -> None:
    results = verified(Damaged(1), planned(cases=["text", "model"], layers=[0], components=["attn", "model"]))
    assert [result.cell.kind for result in results if result.verdict is Verdict.ERROR] == ["model"]


@pytest.mark.parametrize(("case", "lost"), [("default", 1), ("model", 3)])
def test_own_model_that_cannot_be_built_is_an_error(case: str, lost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is short when the first candidate's copy of the weights is made, after the reference's."""
    viewed = count(1)

    def short(*arguments: Any) -> Any:
        if next(viewed) == 3:  # after the shapes and the reference
            raise MemoryError
        return in_view(*arguments)

    in_view = window._in_view
    monkeypatch.setattr(window, "_in_view", short)
    names = ("cgverify", "transformer_lens")
    plan = planned(cases=[case], layers=[0], components=["embed", "unembed"], candidates=names)
    results = verified(resolve("codegen-nano"), plan, *names)
    errors = [result.findings[0].message for result in results if result.verdict is Verdict.ERROR]
    assert set(errors) == {"The weights of embed do not fit into memory: MemoryError"}
    assert len(errors) == lost


# --- order and progress -----------------------------------------------------------------------------------------------


def test_each_cell_is_reported_before_it_is_run() -> None:
    """Cells on the way are reported as the cell that needs them, and nothing while cells are judged."""
    plan = planned(cases=["text", "model"], layers=[1], components=["attn", "block", "ln_final", "model"])
    reported: list[Cell | None] = []
    candidates = {"cgverify": find_candidate("cgverify")}
    verifier = CheckpointVerifier(resolve("codegen-nano"), candidates, prompt=PROMPT)
    results = list(verifier.verify(plan, reported.append))
    assert len(results) == len(plan)
    assert set(reported) == {None, *plan}
    order = list(dict.fromkeys(cell for cell in reported if cell is not None))
    assert [cell.kind for cell in order] == ["model", "attn", "block", "block", "ln_final", "ln_final"]
    assert reported[-1] is None


def test_cells_behind_a_prompt_batch_have_their_own_inputs() -> None:
    """The scale of stress inputs follows from the weights in view, whatever was in view before."""
    prompted = planned(cases=["text"], layers=[4], components=["block"])
    stressed = planned(cases=["stress"], layers=[4], components=["attn"])
    verifier = CheckpointVerifier(resolve("codegen-nano"), {"cgverify": find_candidate("cgverify")}, prompt=PROMPT)
    list(verifier.verify(prompted))
    (behind,) = verifier.verify(stressed)
    (alone,) = verified(resolve("codegen-nano"), stressed)
    assert behind.findings == alone.findings
