"""Verdicts on whole cells: correct bridges pass, and every seeded fault fails in the right stage."""

from __future__ import annotations

from typing import Any

import faults
import pytest
import torch
from hugging_face import TABLE_PER_MODEL, needs_upstream
from transformer_lens.model_bridge.generalized_components import NormalizationBridge
from verifying import ALL_DTYPES, THREE, failed, findings, nano_cells, of, verify

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.checkpoint.resolve import resolve
from cgverify.common.records import CellResult, Verdict
from cgverify.observe.candidate import find_candidate
from cgverify.observe.components import COMPONENTS
from cgverify.plan.axes import Axes
from cgverify.selftest.seeded import FAULTS
from cgverify.selftest.seeded.block import mlp_reads_the_residual, residual_after_norm
from cgverify.selftest.seeded.ends import embedding_shifted, unembedding_in_bfloat16
from cgverify.selftest.seeded.feed_forward import erf_gelu, mlp_in_bias_missing
from cgverify.selftest.seeded.layer_norm import wrong_eps
from cgverify.verification.checkpoint_verifier import CheckpointVerifier
from cgverify.verification.judge import Judge

HERE = __name__
SEEDED = {fault.name: fault.bridge for fault in FAULTS}


# --- our own bridge ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything() -> list[CellResult]:
    return verify(dtypes=ALL_DTYPES, layers=[4], cases=THREE)


def test_bridge_passes_with_no_required_tap_left_out(everything: list[CellResult]) -> None:
    assert failed(everything) == []
    assert {result.cell.kind for result in everything} == set(COMPONENTS)
    for result in everything:
        stages = COMPONENTS[result.cell.kind].stages(result.cell.case == "decode")
        taps = {finding.tap for finding in result.findings}
        assert {stage.tap for stage in stages if stage.required} <= taps, result.cell


def test_attention_taps_are_bitwise(everything: list[CellResult]) -> None:
    for result in everything:
        if result.cell.kind.startswith("attn") and result.cell.dtype != "float64":
            assert {finding.verdict for finding in result.findings} == {Verdict.BITWISE}, result.cell


def test_block_taps_of_both_sides_are_bitwise(everything: list[CellResult]) -> None:
    for result in everything:
        if result.cell.kind == "block" and result.cell.dtype != "float64":
            other = {finding.tap for finding in result.findings if finding.verdict is not Verdict.BITWISE}
            assert other <= {"ln1.hook_scale", "ln1.hook_normalized"}


def test_every_finding_has_a_ratio_within_its_bound(everything: list[CellResult]) -> None:
    for finding in findings(everything):
        assert finding.r is not None
        assert finding.r <= 1
        assert finding.reference_r is None or finding.reference_r <= 1


@pytest.mark.parametrize("axes", [{"batch_size": 1, "seq_len": 1}, {"batch_size": 3, "seq_len": 33}, {"seeds": [1, 2]}])
def test_other_shapes_and_seeds_pass(axes: dict[str, Any]) -> None:
    assert failed(verify(dtypes=["float32", "bfloat16"], components=["attn", "block"], **axes)) == []


def test_other_rotary_dims_pass_and_odd_ones_are_unsupported() -> None:
    results = verify(rotary_dims=[2, 24, "none", 7], components=["attn"])
    by_dim = {dim: [r for r in results if r.cell.rotary_dim == dim] for dim in (2, 24, "none", 7)}
    assert failed(results) == []
    for dim in (2, 24, "none"):
        assert all(finding.verdict is Verdict.BITWISE for finding in findings(by_dim[dim])), dim
    assert {finding.verdict for finding in findings(by_dim[7])} == {Verdict.UNSUPPORTED}
    assert "rotary_dim 7" in by_dim[7][0].findings[0].message


# --- seeded faults ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def seeded(request: pytest.FixtureRequest) -> list[CellResult]:
    names = [f"faults:{fault.__name__}" for fault in faults.STAGES]
    return verify(candidates=names, dtypes=[request.param], components=["attn", "block"])


@pytest.mark.parametrize("kind", ["attn", "block"])
@pytest.mark.parametrize("fault", faults.STAGES, ids=lambda fault: fault.__name__)
def test_fault_fails_its_own_stage_only(seeded: list[CellResult], fault: type, kind: str) -> None:
    own = of(seeded, candidate=f"faults:{fault.__name__}", kind=kind)
    returns_no_pattern = TABLE_PER_MODEL and kind == "block" and fault is faults.ReturnedWeightsZeroed
    assert {finding.stage for finding in failed(own)} == (set() if returns_no_pattern else faults.STAGES[fault])


def test_shifted_positions_with_dead_hooks_fail_the_cache() -> None:
    """The pattern does not change, so without the hooks of the rotation only the cache shows it."""
    results = verify(candidates=[f"{HERE}:ShiftedAndSilent"], components=["attn"], cases=["decode"])
    assert {(f.stage, f.tap) for f in failed(results)} >= {("cache", "cache_keys"), ("rope", "hook_rot_q")}
    assert {f.tap for f in failed(results) if f.verdict is Verdict.MISSING} == {"hook_rot_q", "hook_rot_k"}


class ShiftedAndSilent(faults.PositionsShifted):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hook_rot_q = self.hook_rot_k = torch.nn.Identity()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ChangesItsInput", "changed its input hidden_states"),
        ("ChangesWhatAHookSaw", "hook_attn_scores was changed in place after a hook had seen it"),
        ("ChangesItByData", "o.hook_in was changed in place after a hook had seen it"),
        ("FiresTwice", "hook_pattern fired 2 times in one forward"),
        ("OtherWithoutHooks", "returned is another tensor when no hook is attached"),
        ("ChangesSettings", "changed torch's settings"),
        ("ReturnsMore", "a tuple of 3 was returned, and a tuple of 2 by the reference"),
        ("Exits", "raised where the reference did not: SystemExit: 0"),
        ("ShowsHiddenScores", "scores is off by"),
        ("OwnExam", "get_random_inputs breaks the contract: its hidden_states is no"),
        ("AliasesSwapped", "hook_q is not the hook q.hook_out"),
        ("Raises", "the candidate raised where the reference did not: RuntimeError: this forward always raises"),
        ("ShowsPatternUncast", "hook_pattern is float32 where it must be bfloat16"),
        ("WrongShape", "returned_pattern has shape"),
        ("NotANumber", "not finite at other elements"),
        ("CannotBoot", "raised in boot: RuntimeError: this module cannot be wrapped"),
        ("NoInputs", "raised in get_random_inputs: RuntimeError: there are no inputs"),
    ],
)
def test_other_faults_fail_with_their_message(name: str, message: str) -> None:
    results = verify(candidates=[SEEDED[name]], dtypes=["bfloat16"], components=["attn"], cases=["default"])
    messages = [finding.message for finding in failed(results)]
    assert any(message in found for found in messages), messages


@pytest.mark.parametrize(("name", "stage"), [("CachedPositionsIgnored", "rope"), ("CachedMaskIgnored", "scores")])
def test_fault_with_a_cache_fails_in_decode_only(name: str, stage: str) -> None:
    results = verify(candidates=[SEEDED[name]], components=["attn"], cases=THREE)
    assert {(r.cell.case, f.stage) for r in results for f in r.findings if f.verdict.fails} == {("decode", stage)}


@pytest.mark.parametrize(("name", "tap"), [("CacheNotExtended", "cache_keys"), ("CacheOfAnotherLayer", "cache_values")])
def test_wrong_or_empty_cache_is_a_finding(name: str, tap: str) -> None:
    found = failed(verify(candidates=[SEEDED[name]], components=["attn"], cases=["decode"]))
    assert tap in {finding.tap for finding in found if finding.stage == "cache"}
    assert not any(finding.tap == "raised" and "'NoneType'" in finding.message for finding in found)


# --- faults outside attention, made by functions of a booted bridge ---------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind", "stages"),
    [
        (wrong_eps, "ln1", {"layer_norm", "scale", "normalized"}),
        (mlp_in_bias_missing, "mlp", {"mlp_in"}),
        (mlp_in_bias_missing, "mlp.in", {"mlp_in"}),
        (erf_gelu, "mlp", {"activation"}),
        (embedding_shifted, "embed", {"embedding"}),
        (unembedding_in_bfloat16, "unembed", {"unembed"}),
        (residual_after_norm, "block", {"block_sum"}),
        (mlp_reads_the_residual, "block", {"input"}),
    ],
)
def test_fault_outside_attention_fails_its_stages(fault: Any, kind: str, stages: set[str]) -> None:
    results = verify(candidates=[f"{HERE}:{fault.__name__}"], components=[kind], cases=["default", "stress"])
    assert {finding.stage for finding in failed(results)} == stages


# --- TransformerLens's own --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def upstream() -> list[CellResult]:
    return verify(candidates=["transformer_lens"], dtypes=["float32", "bfloat16"])


@needs_upstream
def test_upstream_crash_in_bfloat16_is_named(upstream: list[CellResult]) -> None:
    decode = failed(of(upstream, dtype="bfloat16", case="decode", kind="attn"))
    assert any("expected m1 and m2 to have the same dtype" in finding.message for finding in decode)
    assert any(finding.tap == "cache_keys" and "float32" in finding.message for finding in decode)


@needs_upstream
def test_upstream_in_float32_fails_only_in_dead_hooks(upstream: list[CellResult]) -> None:
    found = failed(of(upstream, dtype="float32"))
    assert {(f.verdict, f.tap.removeprefix("attn.")) for f in found} == {
        (Verdict.MISSING, "hook_rot_q"),
        (Verdict.MISSING, "hook_rot_k"),
    }
    assert {f.verdict for f in findings(of(upstream, dtype="float32")) if f.tap == "returned"} <= {
        Verdict.BITWISE,
        Verdict.ULP,
        Verdict.BOUNDED,
    }


@needs_upstream
def test_scores_are_checked_without_the_rotation_hooks(upstream: list[CellResult]) -> None:
    scores = [f for f in findings(of(upstream, dtype="float32", case="default", kind="attn")) if f.stage == "scores"]
    assert scores
    assert all(f.r is not None and 0 < f.r <= 1 for f in scores)


@needs_upstream
def test_optional_silent_hooks_are_reported_and_do_not_fail(upstream: list[CellResult]) -> None:
    (result,) = of(upstream, dtype="float32", case="default", kind="attn")
    assert "qkv.hook_out" in result.silent_hooks
    assert "qkv.hook_out" not in {finding.tap for finding in failed([result])}


# --- hooks that never fire --------------------------------------------------------------------------------------------


class SilentPattern(CodeGenAttentionBridge):
    """`hook_pattern` never fires; everything is computed correctly."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hook_pattern = torch.nn.Identity()


def test_dead_hook_is_blamed_for_unchecked_stages() -> None:
    (result,) = verify(candidates=[f"{HERE}:SilentPattern"], components=["attn"], cases=["patched"], sentences=True)
    assert {(finding.tap, finding.verdict) for finding in failed([result])} == {("hook_pattern", Verdict.MISSING)}
    assert result.blame == "hook_pattern never fired"


def test_dead_hook_inside_a_patched_block_fails() -> None:
    (result,) = verify(candidates=[f"{HERE}:SilentPattern"], components=["block"], cases=["patched"], sentences=True)
    assert {(finding.tap, finding.verdict) for finding in failed([result])} == {("attn.hook_pattern", Verdict.MISSING)}


@needs_upstream
def test_dead_hook_is_reported_once_per_cell() -> None:
    results = verify(candidates=["transformer_lens"], components=["attn"], cases=["decode", "gated"])
    decode, gated = ([finding.tap for finding in failed([result])] for result in results)
    assert decode == ["hook_rot_q", "hook_rot_k"]
    flagged = ["hook_result", "hook_q_input", "hook_k_input", "hook_v_input", "hook_attn_in"]
    assert gated == ["hook_rot_q", "hook_rot_k", *flagged]


@needs_upstream
def test_flagged_hooks_are_not_silent_while_the_flag_is_off() -> None:
    (ours,) = verify(components=["attn"], cases=["default"])
    (block,) = verify(candidates=["transformer_lens"], components=["block"], cases=["default"])
    assert ours.silent_hooks == ()
    assert "attn.qkv.hook_out" in block.silent_hooks
    assert not any(
        hook.endswith(("hook_result", "_input", "hook_attn_in", "hook_rot_q")) for hook in block.silent_hooks
    )


def test_forward_that_raised_reports_no_silent_hooks_behind() -> None:
    (whole,) = verify(candidates=["transformer_lens"], components=["block"], cases=["default"], dtypes=["bfloat16"])
    (raised,) = verify(candidates=["transformer_lens"], components=["block"], cases=["decode"], dtypes=["bfloat16"])
    assert any("raised" in finding.message for finding in raised.findings)
    assert set(raised.silent_hooks) <= set(whole.silent_hooks)


# --- many candidates --------------------------------------------------------------------------------------------------


def test_many_candidates_read_each_tensor_once(monkeypatch: pytest.MonkeyPatch) -> None:
    source = resolve("codegen-nano")
    reads: list[str] = []
    read = source.read
    monkeypatch.setattr(source, "read", lambda name, shape: reads.append(name) or read(name, shape))
    seeded = [f"faults:{fault.__name__}" for fault in list(faults.STAGES)[:1]]
    names = ["cgverify", SEEDED["Raises"], "transformer_lens", *seeded]
    axes = Axes(
        candidates=names,
        cases=["default", "weights"],
        dtypes=["float32", "bfloat16"],
        layers=[0],
        components=["attn", "block", "embed"],
    )
    plan = nano_cells(axes)
    candidates = {name: find_candidate(name) for name in names}
    results = list(CheckpointVerifier(source, candidates, judge=Judge(with_sentence=False)).verify_all(plan))
    assert len(results) == len(plan)
    assert len(reads) == len(set(reads))


def test_candidate_that_zeroes_weights_leaves_the_next_alone() -> None:
    names = [f"{HERE}:zeroes_weights", "cgverify"]
    results = verify(candidates=names, components=["attn"], cases=["default"])
    assert failed(of(results, candidate=names[0]))
    assert not failed(of(results, candidate="cgverify"))


def zeroes_weights(bridge: Any) -> Any:
    for parameter in bridge.parameters():
        parameter.data.zero_()
    return bridge


def test_default_norm_passes_and_is_not_bitwise() -> None:
    """TransformerLens's default norm passes, but only its native norm is bitwise."""
    results = verify(candidates=[f"{HERE}:default_norm"], components=["block"], cases=["default"])
    assert not failed(results)
    assert any(f.tap == "ln1.hook_out" and f.verdict is not Verdict.BITWISE for f in findings(results))


def default_norm(bridge: Any) -> Any:
    norm = bridge.blocks[0].ln1
    assert isinstance(norm, NormalizationBridge)
    norm.__class__, norm.use_native_layernorm_autograd = NormalizationBridge, False
    return bridge
