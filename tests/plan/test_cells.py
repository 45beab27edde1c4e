"""From options to cells."""

from __future__ import annotations

import hashlib
import json

import pytest

from cgverify.common.errors import UnknownNameError, UsageError
from cgverify.common.records import Prompt
from cgverify.observe.components import COMPONENTS
from cgverify.plan.cells import AFTER, BEFORE, CASE_KINDS, PER_LAYER, WHOLE, Axes, CheckpointShape, cells

SUBJECT = CheckpointShape(model="m", weights="d", n_layers=3, rotary_dim=8, n_positions=64)


def test_the_plan_and_the_table_name_the_same_components() -> None:
    assert {*COMPONENTS, *WHOLE} == {*BEFORE, *PER_LAYER, *AFTER, *WHOLE}


def test_everything_is_planned_by_default() -> None:
    planned = cells(SUBJECT, Axes())
    assert len(planned) == 3 * 2 + 3 * (10 * 2 + 2)
    assert {cell.component for cell in planned} >= {"embed", "blocks.0", "blocks.2.attn.q", "ln_final", "unembed"}
    assert {cell.rotary_dim for cell in planned} == {8}
    assert len({cell.id for cell in planned}) == len(planned)


def test_axes_multiply() -> None:
    one = len(cells(SUBJECT, Axes()))
    axes = Axes(candidates=["a", "b"], dtypes=["float32", "float16"], rotary_dims=[2, "none"], seeds=[0, 1, 2])
    assert len(cells(SUBJECT, axes)) == one * 2 * 2 * 2 * 3


@pytest.mark.parametrize(
    ("globs", "kinds"),
    [
        (["attn.?"], {"attn.q", "attn.k", "attn.v", "attn.o"}),
        (["blocks.1.mlp*"], {"mlp", "mlp.in", "mlp.out"}),
        (["embed", "blocks.2"], {"embed", "block"}),
    ],
)
def test_globs_select_by_kind_or_by_name(globs: list[str], kinds: set[str]) -> None:
    assert {cell.kind for cell in cells(SUBJECT, Axes(components=globs))} == kinds


def test_a_glob_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(UnknownNameError, match=r"attn\.q"):
        cells(SUBJECT, Axes(components=["attn.qq"]))


def test_a_layer_that_is_not_there_is_an_error() -> None:
    with pytest.raises(UsageError, match="between 0 and 2"):
        cells(SUBJECT, Axes(layers=[3]))


def test_more_positions_than_there_are_is_an_error() -> None:
    assert cells(SUBJECT, Axes(seq_len=59))
    with pytest.raises(UsageError, match="has 64 positions, and 65 are asked for"):
        cells(SUBJECT, Axes(seq_len=60))
    assert cells(SUBJECT, Axes(seq_len=64, cases=["default"]))


def test_a_component_that_no_given_case_is_for_is_an_error() -> None:
    with pytest.raises(UsageError, match="None of the cases asked for is for the component 'ln1'"):
        cells(SUBJECT, Axes(components=["ln1"], cases=["decode"]))


def test_a_cells_identity_is_its_content() -> None:
    first, second = cells(SUBJECT, Axes(layers=[0]))[:2]
    assert first.id == type(first).model_validate_json(first.model_dump_json()).id
    assert first.id != second.id


def test_cases_are_for_the_kinds_that_they_name() -> None:
    assert {cell.kind for cell in cells(SUBJECT, Axes(cases=["decode"]))} == set(CASE_KINDS["decode"])


PROMPT = Prompt(tokens=(5, 6, 7, 8), origin="a test")


def test_a_prompt_is_planned_once_whatever_random_inputs_are() -> None:
    axes = Axes(cases=["default", "text", "model"], seeds=[3, 4], batch_size=5, layers=[1])
    planned = cells(SUBJECT, axes, PROMPT)
    prompted = [cell for cell in planned if cell.case != "default"]
    assert {(cell.seed, cell.batch_size, cell.seq_len, cell.prompt) for cell in prompted} == {(3, 1, 4, PROMPT.digest)}
    assert {cell.kind for cell in prompted if cell.case == "text"} == {*BEFORE, *PER_LAYER, *AFTER}
    assert {cell.component for cell in prompted if cell.case == "model"} == {*BEFORE, "blocks.1", *AFTER, *WHOLE}
    assert len({cell.id for cell in planned}) == len(planned)


def test_another_prompt_is_another_cell() -> None:
    axes = Axes(cases=["text"], components=["embed"])
    (one,) = cells(SUBJECT, axes, PROMPT)
    (other,) = cells(SUBJECT, axes, PROMPT.model_copy(update={"tokens": (5, 6, 8, 7)}))
    assert one.id != other.id
    (elsewhere,) = cells(SUBJECT, axes, PROMPT.model_copy(update={"origin": "another file"}))
    assert one.id == elsewhere.id


def test_a_cell_of_random_inputs_is_what_it_was_before_there_were_prompts() -> None:
    cell = cells(SUBJECT, Axes(layers=[0]))[0]
    fields = {name: value for name, value in cell.model_dump().items() if name != "prompt"}
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
def test_a_prompt_must_fit_its_cases(case: str, tokens: int, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        cells(SUBJECT, Axes(cases=[case]), Prompt(tokens=(1,) * tokens, origin="a test"))


def test_the_length_of_random_inputs_does_not_concern_a_prompt() -> None:
    assert cells(SUBJECT, Axes(cases=["text"], seq_len=100), PROMPT)
