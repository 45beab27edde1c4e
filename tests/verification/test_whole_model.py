"""The whole model: our bridge passes, and faults between layers are found in their layer and stage."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import whole_faults
from torch.nn import functional
from transformers import CodeGenForCausalLM
from verifying import ALL_DTYPES, failed, findings, of, verify

from cgverify.bridge import boot
from cgverify.checkpoint import assembled
from cgverify.checkpoint.names import NANO
from cgverify.checkpoint.resolve import resolve
from cgverify.checkpoint.window import ModelVariant, Window
from cgverify.common.records import CellResult, Prompt, Verdict
from cgverify.oracle.loss import loss as expected_loss
from cgverify.oracle.shortcuts import NO_SHORTCUTS
from cgverify.plan.cases import AS_CARRIED, CARRIED, GENERATED_TOKENS, GENERATION, TOP_1
from cgverify.selftest import tempting
from cgverify.verification.model_calls import (
    ModelCalls,
    call_reference,
    described_differences,
    padded_batch,
    wrong_loss,
)
from cgverify.verification.prompt_pass import name_of, views
from cgverify.verification.rounding_spread import with_bound
from cgverify.verification.whole_model import run_reference

PROMPT = Prompt(tokens=tuple(b"def f(x):\n"), origin="a test")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ours() -> list[CellResult]:
    return verify(cases=["model"], layers=range(5), dtypes=ALL_DTYPES, prompt=PROMPT)


def test_bridge_passes_in_every_layer_and_forward(ours: list[CellResult]) -> None:
    assert failed(ours) == []
    steps = {finding.step for finding in findings(of(ours, kind="model"))}
    for name in ("embed", *(f"blocks.{layer}" for layer in range(5)), "ln_final", "unembed"):
        assert {f"prefill {name}", f"token 2 {name}", f"generated {GENERATED_TOKENS - 1} {name}"} <= steps


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_bridge_is_bitwise_from_prompt_to_generated_tokens(ours: list[CellResult], dtype: str) -> None:
    own = of(ours, dtype=dtype)
    reported = [f for f in findings(own) if f.stage in (CARRIED, TOP_1, AS_CARRIED, GENERATION)]
    assert len(reported) == 8 + 1 + 8 + 1
    assert {finding.verdict for finding in reported} == {Verdict.BITWISE}
    assert all(f.max_abs in (None, 0.0) for f in findings(own) if f.reference_r is not None)


def test_other_rotary_dims_pass_in_the_whole_model() -> None:
    results = verify(cases=["model"], rotary_dims=[8, "none"], components=["model", "ln_final"], prompt=PROMPT)
    assert failed(results) == []
    assert {r.cell.rotary_dim for r in of(results, kind="model") if r.verdict.compares} == {8, "none"}
    reported = [f for f in findings(results) if f.stage in (CARRIED, AS_CARRIED, GENERATION)]
    assert {finding.verdict for finding in reported} == {Verdict.BITWISE}


def test_distance_from_float64_grows_with_unit_roundoff(ours: list[CellResult]) -> None:
    errors = {}
    for dtype in ALL_DTYPES:
        (logits,) = [f for f in findings(of(ours, dtype=dtype, kind="unembed")) if f.stage == CARRIED]
        errors[dtype] = logits.reference_error or 0.0
    assert 0 < errors["float64"] < errors["float32"] < errors["float16"] < errors["bfloat16"] < 1


def test_reference_generates_as_transformers_does() -> None:
    """The tokens are those of Hugging Face's own `generate`, with padding too."""
    model = CodeGenForCausalLM.from_pretrained(NANO, dtype=torch.float32).eval()
    tokens, mask = padded_batch(PROMPT.tokens, CPU)
    settings = {"max_new_tokens": GENERATED_TOKENS, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        generated = model.generate(tokens, attention_mask=mask, **settings)
    setting = ModelVariant(torch.float32, CPU, model.config.rotary_dim)
    source = resolve("codegen-nano")
    run = run_reference(assembled.assembled(Window(source), source.config, setting), PROMPT)
    assert run.tokens == generated[0, len(PROMPT.tokens) :].tolist()
    assert run.calls is not None
    assert torch.equal(run.calls.ids, generated)


def without_its_last_block(bridge: Any) -> Any:
    if len(bridge.blocks) > 1:
        del bridge.blocks[-1]
    return bridge


QUICK = (whole_faults.third_layer_as_second, whole_faults.cache_of_another_layer)


@pytest.fixture(scope="module")
def seeded() -> Callable[..., list[CellResult]]:
    """Return what verifies the two quick faults of layers, one of a call and one of the blocks, or all others."""

    @cache
    def results(quick: bool) -> list[CellResult]:
        faults = [fault for fault in whole_faults.FAULTS if (fault in QUICK) == quick]
        names = [f"whole_faults:{fault.__name__}" for fault in faults]
        names += ["whole_faults:padding_ignored", f"{__name__}:without_its_last_block"] if quick else []
        return verify(cases=["model"], components=["model", "unembed"], candidates=names, prompt=PROMPT, sentences=True)

    return results


@pytest.mark.parametrize(
    "fault",
    [fault if fault in QUICK else pytest.param(fault, marks=pytest.mark.slow) for fault in whole_faults.FAULTS],
    ids=lambda fault: fault.__name__,
)
def test_fault_between_layers_is_found_in_its_layer(seeded: Any, fault: Any) -> None:
    own = of(seeded(fault in QUICK), candidate=f"whole_faults:{fault.__name__}")
    assert failed(of(own, kind="unembed")) == []
    stages, components = whole_faults.FAULTS[fault]
    found = failed(of(own, kind="model"))
    assert stages <= {finding.stage for finding in found}
    # Other calls of the model differ in its logits, which no component is to blame for.
    inside = [finding for finding in found if (finding.tap, finding.stage) != ("logits", "conduct")]
    assert {finding.step.rpartition(" ")[2] for finding in inside} <= components
    differ = [f for f in findings(own) if f.stage == AS_CARRIED and f.verdict is not Verdict.BITWISE]
    assert differ or fault is whole_faults.cache_of_another_layer


def test_fault_of_a_call_is_found_in_the_logits(seeded: Any) -> None:
    found = failed(of(seeded(True), candidate="whole_faults:padding_ignored"))
    assert {(finding.tap, finding.stage) for finding in found} == {("logits", "conduct")}
    assert whole_faults.CALLS[whole_faults.padding_ignored] in found[0].message


@pytest.fixture(scope="module")
def model() -> CodeGenForCausalLM:
    return CodeGenForCausalLM.from_pretrained(NANO, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def calls(model: CodeGenForCausalLM) -> ModelCalls:
    return call_reference(model, PROMPT.tokens, CPU, NO_SHORTCUTS)


def differences(candidate: Any, model: CodeGenForCausalLM, calls: ModelCalls) -> list[str]:
    bridge = candidate(boot(copy.deepcopy(model)))
    nodes = {name: bridge.get_submodule(name) for name in map(name_of, views(5))}
    return described_differences(bridge, nodes, calls)


@pytest.mark.parametrize("fault", whole_faults.CALLS, ids=lambda fault: fault.__name__)
def test_fault_of_a_call_is_named(fault: Any, model: CodeGenForCausalLM, calls: ModelCalls) -> None:
    assert whole_faults.CALLS[fault] in differences(fault, model, calls)[0]


@pytest.mark.parametrize("name", ["rows_alone", "generates_without_a_cache", "stops_at_the_end"])
def test_correct_variant_of_a_call_is_accepted(name: str, model: CodeGenForCausalLM, calls: ModelCalls) -> None:
    assert differences(getattr(tempting, name), model, calls) == []


def test_bound_of_logits_is_that_of_sampled_roundings(model: CodeGenForCausalLM) -> None:
    """In bfloat16 the spread is 2¹⁶ times that in float32, and the model is as it was."""
    ids = torch.tensor([PROMPT.tokens])
    spreads = []
    for dtype in (torch.float32, torch.bfloat16):
        own = copy.deepcopy(model).to(dtype)
        with torch.no_grad():
            logits, bound = with_bound(lambda own=own: own(ids).logits, own, NO_SHORTCUTS)  # type: ignore[misc]
            assert torch.equal(own(ids).logits, logits)
        spreads.append(bound.mean())
    assert 2**14 < float(spreads[1] / spreads[0]) < 2**18


def test_loss_is_within_its_bound_in_every_dtype() -> None:
    logits, ids = torch.randn(20, 300) * 2, torch.arange(20)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        rounded = logits.to(dtype)
        expected = expected_loss(rounded, ids)
        stored = functional.cross_entropy(rounded[:-1], ids[1:])
        by_hand = -rounded.softmax(-1)[:-1].gather(1, ids[1:, None]).log().mean()
        for right in (stored, by_hand):
            assert abs(float(right) - float(expected.value)) <= float(expected.bound)
        assert abs(float(stored) * 1.05 - float(expected.value)) > float(expected.bound)


def test_loss_that_is_not_a_number_is_wrong() -> None:
    logits, ids = torch.randn(1, 5, 7), torch.arange(5).unsqueeze(0)
    for loss in (torch.tensor(torch.nan), torch.tensor(torch.inf)):
        assert wrong_loss(lambda *_, loss=loss, **__: loss, ids, logits)


def test_failed_whole_model_sentence_counts_later_failures(seeded: Any) -> None:
    third, of_cache = (
        of(seeded(True), candidate=f"whole_faults:{fault.__name__}", kind="model")[0].blame
        for fault in (whole_faults.third_layer_as_second, whole_faults.cache_of_another_layer)
    )
    assert third.startswith("layer_norm breaks first, everywhere in ln1.hook_out, by ")
    assert of_cache == "attn.cache_keys and attn.cache_values never fired; 1 more component fails behind it"


def test_bridge_with_too_few_blocks_fails_in_a_sentence(seeded: Any) -> None:
    (found,) = failed(of(seeded(True), candidate=f"{__name__}:without_its_last_block", kind="model"))
    assert found.message == "the bridge over the whole model of 5 blocks has no blocks.4"


def test_model_too_large_for_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembled, "SHARE", 1e-6)
    results = verify(cases=["model"], components=["model", "unembed"], prompt=PROMPT)
    (refused,) = of(results, kind="model")
    assert refused.verdict is Verdict.ERROR
    assert "it was verified through the window alone" in refused.findings[0].message
    assert of(results, kind="unembed")[0].verdict is Verdict.BITWISE


def test_codegen_16b_in_float64_is_too_large() -> None:
    reason = assembled.too_large(resolve("codegen-16B", "random").config, ModelVariant(torch.float64, CPU, 64))
    assert reason is not None
    assert "the whole model takes 159" in reason
    assert assembled.too_large(resolve("codegen-nano").config, ModelVariant(torch.float32, CPU, 16)) is None
