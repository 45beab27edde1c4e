"""The cases: our bridge holds in each, and what one case alone can see is found there and blamed on the right stage."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

import case_faults
import pytest
import torch
from hugging_face import TABLE_PER_MODEL, needs_upstream
from transformers import CodeGenForCausalLM
from verifying import ALL_DTYPES, failed, findings, of, verify

from cgverify.bridge import boot
from cgverify.common.records import CellResult, Verdict
from cgverify.observe.cases import CASES
from cgverify.observe.components import COMPONENTS, FLAGGED_HOOKS
from cgverify.observe.taps import Observation, hook_points
from cgverify.plan import cases as plan

OWN = ["masked_row", "cast_table", "gated", "patched", "train"]
"""The cases beyond the default ones, which have tests of their own."""

RANDOM = [case for case in CASES if case not in plan.PROMPTED]


def test_the_plan_and_the_table_name_the_same_cases() -> None:
    assert set(CASES) == set(plan.CASE_KINDS)
    assert set(plan.DEFAULT_CASES) < set(CASES)


# --- our own bridge ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ours() -> list[CellResult]:
    return verify(dtypes=["float32", "bfloat16"], layers=[4], cases=OWN)


def test_our_bridge_holds_in_every_case(ours: list[CellResult]) -> None:
    assert failed(ours) == []
    assert {(r.cell.case, r.cell.kind) for r in ours} == {
        (case, kind) for case in OWN for kind in plan.CASE_KINDS[case]
    }


def test_every_stage_was_held_against_its_oracle_on_both_sides(ours: list[CellResult]) -> None:
    for finding in findings(ours):
        assert finding.r is not None
        assert finding.r <= 1
        assert finding.reference_r is None or finding.reference_r <= 1
        assert finding.message == ""


@pytest.mark.parametrize("case", ["masked_row", "cast_table", "train"])
def test_attention_is_bitwise_where_hugging_face_does_the_same(ours: list[CellResult], case: str) -> None:
    for result in of(ours, case=case, kind="attn"):
        if result.cell.dtype != "float64":
            plain = [f for f in result.findings if f.step not in FLAGGED_HOOKS["attn"]]
            assert {finding.verdict for finding in plain} == {Verdict.BITWISE}, result.cell


@pytest.mark.parametrize("kind", ["attn", "block"])
def test_every_gated_hook_is_judged_and_patched(ours: list[CellResult], kind: str) -> None:
    for flag, hooks in FLAGGED_HOOKS[kind].items():
        taps = {f.tap for f in findings(of(ours, case="gated", kind=kind)) if f.step == flag}
        assert set(hooks) <= taps
        steps = {f.step for f in findings(of(ours, case="patched", kind=kind))}
        assert set(hooks) <= steps


@pytest.mark.parametrize("kind", COMPONENTS)
def test_every_hook_that_a_bridge_registers_is_judged(model: CodeGenForCausalLM, kind: str) -> None:
    """By itself or under its flag: nothing is shown to a researcher that no stage has held."""
    component = COMPONENTS[kind]
    node = boot(model).get_submodule(component.bridge_path)
    bridge = Observation({name: torch.empty(1, 1, 1, 1) for name, _ in hook_points(node)})
    component.rename_taps(bridge)
    plain = {stage.tap for stage in component.stages(False)}
    assert set(bridge.taps) <= plain.union(*FLAGGED_HOOKS.get(kind, {}).values())


def test_every_hook_of_attention_that_fires_is_patched(ours: list[CellResult]) -> None:
    for result in of(ours, case="patched", kind="attn"):
        steps = {f.step for f in result.findings}
        taps = {f.tap for f in result.findings}
        assert taps - steps == {"returned", "returned_pattern", "cache_keys", "cache_values"}


def test_sequences_of_one_token_hold(ours: list[CellResult]) -> None:
    assert failed(verify(cases=OWN, dtypes=["bfloat16"], batch_size=1, seq_len=1)) == []


def test_other_seeds_and_shapes_hold() -> None:
    assert failed(verify(cases=OWN, dtypes=["float16"], seeds=[1], batch_size=3, seq_len=17)) == []


@pytest.mark.slow
def test_our_bridge_holds_in_every_dtype() -> None:
    for layer in (0, 4):
        assert failed(verify(dtypes=ALL_DTYPES, layers=[layer], cases=OWN)) == []


# --- seeded faults ----------------------------------------------------------------------------------------------------


FailingStages = dict[str, dict[tuple[str, str], set[str]]]
"""By fault: the stages that failed, by case and kind."""


def failing_stages(faults: Iterable[str], dtype: str, cases: Sequence[str]) -> FailingStages:
    names, kinds = [f"faults:{name}" for name in faults], ["attn", "block"]
    found: FailingStages = defaultdict(lambda: defaultdict(set))
    for result in verify(candidates=names, dtypes=[dtype], cases=cases, components=kinds):
        for finding in failed([result]):
            found[result.cell.candidate.removeprefix("faults:")][result.cell.case, result.cell.kind].add(finding.stage)
    return found


def expected(fault: str, dtype: str, cases: Sequence[str]) -> dict[tuple[str, str], set[str]]:
    # Where q and k are cast after the rotation, those of a float32 table are within the bound of those of a cast one.
    if fault == "TableOfItsOwn" and (dtype == "float32" or TABLE_PER_MODEL):
        return {}
    return {key: stages for key, stages in case_faults.FAULTS[fault].items() if key[0] in cases}


@pytest.mark.parametrize("fault", case_faults.FAULTS)
def test_a_fault_is_found_in_its_case_and_its_stage_is_blamed(fault: str) -> None:
    (case, _), *_ = case_faults.FAULTS[fault]
    cases = [case, "default"]
    assert dict(failing_stages([fault], "float32", cases)[fault]) == expected(fault, "float32", cases)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fault_is_found_in_its_cases_alone(dtype: str) -> None:
    cases = RANDOM if dtype == "float32" else OWN
    found = failing_stages(case_faults.FAULTS, dtype, cases)
    for fault in case_faults.FAULTS:
        assert dict(found[fault]) == expected(fault, dtype, cases), fault


PAIRS = (" in settings", " and hook_pattern")
"""How steps of `patched` end in which two hooks return tensors."""


@pytest.mark.parametrize("first", [0, *(pytest.param(first, marks=pytest.mark.slow) for first in (1, 2, 3))])
@pytest.mark.parametrize("kind", plan.CASE_KINDS["patched"])
def test_a_hook_that_only_shows_fails_for_exactly_that_hook_and_is_told(kind: str, first: int) -> None:
    """Every fourth hook, from one of the first four."""
    names = {f"case_faults:{name}": tap for tap, name in list(case_faults.DEAF[kind].items())[first::4]}
    results = verify(candidates=list(names), cases=["patched"], components=[kind])
    for result in results:
        tap = names[result.cell.candidate]
        steps = {finding.step for finding in failed([result])}
        assert tap in steps
        assert all(f"{step} ".startswith(f"{tap} ") or step.endswith(PAIRS) for step in steps)
        for finding in failed([result]):
            if "in another dtype is ignored" in finding.message:
                assert finding.tap == tap
                continue
            (named,) = re.findall("what (.*) returned was not used, or not wholly: ", finding.message)
            assert named == tap or (finding.step.endswith(PAIRS) and tap in named.split(" and ")), finding


def test_a_hook_that_only_shows_holds_where_nobody_intervenes() -> None:
    names = [f"case_faults:{name}" for name in list(case_faults.DEAF["attn"].values())[::5]]
    others = ["default", *(case for case in OWN if case != "patched")]
    assert failed(verify(candidates=names, cases=others, components=["attn"])) == []


def test_flags_are_put_back() -> None:
    """What comes after `gated` runs plainly again, on the same bridge."""
    verify(candidates=[f"{__name__}:kept"], cases=["gated", "default"], components=["attn"])
    (bridge,) = import_module(__name__).KEPT  # as `--bridge` imports it
    assert not any(getattr(bridge.cfg, flag) for flag in FLAGGED_HOOKS["block"])


KEPT: list[Any] = []


def kept(bridge: Any) -> Any:
    KEPT.append(bridge)
    return bridge


# --- TransformerLens's own --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def upstream() -> list[CellResult]:
    return verify(candidates=["transformer_lens"], cases=OWN, components=["attn", "block", "mlp"])


@needs_upstream
def test_upstreams_flags_without_effect_are_named(upstream: list[CellResult]) -> None:
    missing = {
        (f.step, f.tap) for f in failed(of(upstream, case="gated", kind="attn")) if not f.tap.startswith("hook_rot")
    }
    assert missing == {(flag, hook) for flag, hooks in FLAGGED_HOOKS["attn"].items() for hook in hooks}


@needs_upstream
def test_upstreams_missing_residual_dropout_is_told(upstream: list[CellResult]) -> None:
    diverged = [f for f in failed(of(upstream, case="train", kind="attn")) if f.verdict is Verdict.DIVERGED]
    assert {f.stage for f in diverged} == {"resid_dropout"}
    assert all(f.message.startswith("dropout is missing, keeps other elements") for f in diverged)


@needs_upstream
def test_upstreams_hooks_that_fire_are_used(upstream: list[CellResult]) -> None:
    dead = {"hook_rot_q", "hook_rot_k", *(hook for hooks in FLAGGED_HOOKS["attn"].values() for hook in hooks)}
    found = [f for f in failed(of(upstream, case="patched")) if not f.step.endswith("autocast")]  # its softmax rounds
    assert {finding.verdict for finding in found} == {Verdict.MISSING}
    assert {finding.tap.removeprefix("attn.") for finding in found} == dead


@needs_upstream
def test_upstream_holds_where_it_agrees_by_design(upstream: list[CellResult]) -> None:
    for case in ("masked_row", "cast_table"):
        assert {f.verdict for f in failed(of(upstream, case=case))} == {Verdict.MISSING}
    assert failed(of(upstream, kind="mlp")) == []


def test_components_know_where_their_hooks_are() -> None:
    attn, block = COMPONENTS["attn"], COMPONENTS["block"]
    assert [attn.hook_path(tap) for tap in ("hook_q", "hook_z", "hook_pattern")] == [
        "q.hook_out",
        "o.hook_in",
        "hook_pattern",
    ]
    assert block.hook_path("attn.hook_z") == "attn.o.hook_in"
    assert block.hook_path("mlp.in.hook_out") == "mlp.in.hook_out"
