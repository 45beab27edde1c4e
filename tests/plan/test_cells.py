"""Axes -> cells."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from cgverify.checkpoint.names import ABSENT
from cgverify.common.errors import UnknownNameError, UsageError
from cgverify.common.records import Prompt
from cgverify.observe.components import COMPONENTS
from cgverify.plan.axes import Axes
from cgverify.plan.cases import AFTER, BEFORE, CASE_KINDS, DEFAULT_CASES, KINDS, PER_LAYER, SAMPLED, WHOLE
from cgverify.plan.cells import cells

PROMPT = Prompt(tokens=(5, 6, 7, 8), origin="a test")
PLAIN = ABSENT.model_copy(update={"name": "m", "digest": "d", "n_layers": 3, "rotary_dim": 8, "n_positions": 64})
PROMPTED = PLAIN.model_copy(update={"prompt": PROMPT})


def test_plan_and_table_of_components_name_the_same() -> None:
    assert {*COMPONENTS, *WHOLE} == set(KINDS)


def test_default_axes_plan_every_component() -> None:
    planned = cells(PLAIN, Axes())
    by_stages = 3 * 2 + 3 * (10 * 2 + 2)
    at_edges = {"shapes": 3 + 3 * 2, "state": 3 + 3, "data": 3 + 3 * 10, "weights": 3 + 3}
    in_the_middle = {case: len(kinds) for case, kinds in SAMPLED.items()}
    assert len(planned) == by_stages + sum(at_edges.values()) + sum(in_the_middle.values())
    assert {cell.component for cell in planned} >= {"embed", "blocks.0", "blocks.2.attn.q", "ln_final", "unembed"}
    assert {cell.rotary_dim for cell in planned} == {8}
    assert len({cell.id for cell in planned}) == len(planned)


def test_axes_multiply() -> None:
    one = len(cells(PLAIN, Axes()))
    axes = Axes(candidates=["a", "b"], dtypes=["float32", "float16"], rotary_dims=[2, "none"], seeds=[0, 1, 2])
    assert len(cells(PLAIN, axes)) == one * 2 * 2 * 2 * 3


@pytest.mark.parametrize(
    ("globs", "kinds"),
    [
        (["attn.?"], {"attn.q", "attn.k", "attn.v", "attn.o"}),
        (["blocks.1.mlp*"], {"mlp", "mlp.in", "mlp.out"}),
        (["embed", "blocks.2"], {"embed", "block"}),
    ],
)
def test_globs_select_by_kind_or_by_name(globs: list[str], kinds: set[str]) -> None:
    assert {cell.kind for cell in cells(PLAIN, Axes(components=globs))} == kinds


def test_glob_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(UnknownNameError, match=r"attn\.q"):
        cells(PLAIN, Axes(components=["attn.qq"]))
    with pytest.raises(UsageError, match="None of the cases asked for is for the component 'ln1'"):
        cells(PLAIN, Axes(components=["ln1"], cases=["decode"]))


def test_layer_beyond_the_last_is_an_error() -> None:
    with pytest.raises(UsageError, match="between 0 and 2"):
        cells(PLAIN, Axes(layers=[3]))


def test_sequence_longer_than_the_positions_is_an_error() -> None:
    assert cells(PLAIN, Axes(seq_len=59))
    with pytest.raises(UsageError, match="has 64 positions, and 65 are asked for"):
        cells(PLAIN, Axes(seq_len=60))
    assert cells(PLAIN, Axes(seq_len=64, cases=["default"]))
    assert cells(PROMPTED, Axes(seq_len=100, cases=["text"])), "the length of random inputs"


def test_cell_is_identified_by_its_content() -> None:
    first, second = cells(PLAIN, Axes(layers=[0]))[:2]
    assert first.id == type(first).model_validate_json(first.model_dump_json()).id
    assert first.id != second.id


def test_cases_are_for_the_kinds_that_they_name() -> None:
    assert {cell.kind for cell in cells(PLAIN, Axes(cases=["decode"]))} == set(CASE_KINDS["decode"])


def test_prompt_is_planned_once_for_all_random_inputs() -> None:
    axes = Axes(cases=["default", "text", "model"], seeds=[3, 4], batch_size=5, layers=[1])
    planned = cells(PROMPTED, axes)
    prompted = [cell for cell in planned if cell.case != "default"]
    assert {(cell.seed, cell.batch_size, cell.seq_len, cell.prompt) for cell in prompted} == {(3, 1, 4, PROMPT.digest)}
    assert {cell.kind for cell in prompted if cell.case == "text"} == {*BEFORE, *PER_LAYER, *AFTER}
    assert {cell.component for cell in prompted if cell.case == "model"} == {*BEFORE, "blocks.1", *AFTER, *WHOLE}
    assert len({cell.id for cell in planned}) == len(planned)


def test_cell_is_another_with_other_tokens_and_not_by_origin() -> None:
    def only_id(**prompt: object) -> str:
        checkpoint = PLAIN.model_copy(update={"prompt": PROMPT.model_copy(update=prompt)})
        (cell,) = cells(checkpoint, Axes(cases=["text"], components=["embed"]))
        return cell.id

    assert only_id() != only_id(tokens=(5, 6, 8, 7))
    assert only_id() == only_id(origin="another file")


def test_cell_of_random_inputs_keeps_its_id_of_older_runs() -> None:
    cell = cells(PLAIN, Axes(layers=[0]))[0]
    fields = {name: value for name, value in cell.model_dump().items() if name not in ("prompt", "attention")}
    assert cell.id == hashlib.sha256(json.dumps(fields, separators=(",", ":")).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("case", "tokens", "sentence"),
    [
        ("model", 2, "has 2 tokens: give --prompt or --tokens with at least 3"),
        ("model", 57, "has 64 positions, and the prompt 57 tokens .the model case generates 8 more."),
        ("text", 0, "has 0 tokens"),
        ("text", 65, "has 64 positions, and the prompt 65 tokens: give a shorter"),
    ],
)
def test_prompt_that_does_not_fit_its_case_is_an_error(case: str, tokens: int, sentence: str) -> None:
    prompt = Prompt(tokens=(1,) * tokens, origin="a test")
    with pytest.raises(UsageError, match=sentence):
        cells(PLAIN.model_copy(update={"prompt": prompt}), Axes(cases=[case]))


def test_case_with_a_prompt_needs_one() -> None:
    with pytest.raises(UsageError, match="The cases text and model need a prompt"):
        cells(PLAIN, Axes(cases=["text", "model"]))


def test_layers_as_a_range_are_numbers() -> None:
    assert Axes(layers=range(3)).layers == Axes(layers=[2, 1, 0]).layers == Axes(layers="0-2").layers == [0, 1, 2]


def components(case: str, **axes: Any) -> list[str]:
    """Return the components of a case in the plan of seven layers."""
    deep = PLAIN.model_copy(update={"n_layers": 7})
    return [cell.component for cell in cells(deep, Axes(**axes)) if cell.case == case]


def test_plain_run_has_sampled_cases_in_the_middle_layer() -> None:
    assert components("caches") == ["blocks.3.attn", "blocks.3"]
    assert components("train") == ["blocks.3.attn", "blocks.3.mlp"]
    assert components("gated") == components("patched") == ["blocks.3.attn"]
    assert components("patched", layers=[0, 5, 6]) == ["blocks.5.attn"]
    assert components("patched", components=["blocks.2.*"]) == ["blocks.2.attn"]
    assert components("patched", components=["blocks.2.mlp"]) == []


def test_sampled_case_that_is_named_is_planned_in_full() -> None:
    for cases in (["patched"], ["default", "patched"], [*DEFAULT_CASES, "backward"]):
        found = components("patched", cases=cases, components=["attn", "block", "embed"], layers=[2, 3])
        assert found == ["embed", "blocks.2.attn", "blocks.2", "blocks.3.attn", "blocks.3"]


def test_few_layers_of_a_case_are_planned_unless_asked_for() -> None:
    deep = PLAIN.model_copy(update={"n_layers": 7})
    assert {cell.layer for cell in cells(deep, Axes(cases=["data"], components=["attn"]))} == {0, 3, 6}
    assert {cell.layer for cell in cells(deep, Axes(cases=["data"], components=["attn"], layers=[1, 2]))} == {1, 2}


def test_parts_of_a_block_are_planned_without_it_alone() -> None:
    assert {cell.kind for cell in cells(PLAIN, Axes(cases=["state"]))} == {"embed", "block", "ln_final", "unembed"}
    assert {cell.kind for cell in cells(PLAIN, Axes(cases=["state"], components=["attn"]))} == {"attn"}


def test_parts_are_planned_where_the_block_of_another_layer_is() -> None:
    planned = cells(PLAIN, Axes(components=["blocks.0", "blocks.1.attn"], cases=["state"], layers=[0, 1]))
    assert {cell.component for cell in planned} == {"blocks.0", "blocks.1.attn"}
