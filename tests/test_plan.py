"""From options to cells."""

from __future__ import annotations

import pytest

from cgverify.components import COMPONENTS
from cgverify.errors import UnknownNameError, UsageError
from cgverify.plan import AFTER, BEFORE, CASES, PER_LAYER, WHOLE, Axes, Subject, cells

SUBJECT = Subject(model="m", weights="d", n_layers=3, rotary_dim=8, n_positions=64)


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
    with pytest.raises(UsageError, match="No --case that was given is for the component 'ln1'"):
        cells(SUBJECT, Axes(components=["ln1"], cases=["decode"]))


def test_a_cells_identity_is_its_content() -> None:
    first, second = cells(SUBJECT, Axes(layers=[0]))[:2]
    assert first.id == type(first).model_validate_json(first.model_dump_json()).id
    assert first.id != second.id


def test_cases_are_for_the_kinds_that_they_name() -> None:
    assert {cell.kind for cell in cells(SUBJECT, Axes(cases=["decode"]))} == set(CASES["decode"])
