"""The points that options select."""

from __future__ import annotations

import pytest

from cgverify.bench.scenarios import COMPONENTS, SCENARIOS, Selection, Shape
from cgverify.common.errors import UsageError


@pytest.mark.parametrize(
    ("text", "shape"), [("2x128", Shape(2, 128)), ("1x1+1000", Shape(1, 1, 1000)), ("16x1+0", Shape(16, 1, 0))]
)
def test_shape_is_parsed(text: str, shape: Shape) -> None:
    assert Shape.parse(text) == shape


@pytest.mark.parametrize("text", ["", "8", "2x", "0x8", "2x0", "2x8+", "2*8", "-1x8", "1x9999999"])
def test_text_that_is_not_a_shape_raises(text: str) -> None:
    with pytest.raises(UsageError, match="BATCHxTOKENS"):
        Shape.parse(text)


def test_default_selection_has_every_kind_of_cost() -> None:
    points = Selection().points(2048)
    assert {point.scenario for point in points} >= {
        "prefill",
        "decode",
        "train",
        "one-hook",
        "all-hooks",
        "boot",
        "memory",
    }
    assert {point.component for point in points} == {"attn", "block"}
    assert len(points) == len(set(points)) <= 20


def test_all_scenarios_cover_all_their_components() -> None:
    points = Selection(scenarios=list(SCENARIOS), components=COMPONENTS).points(2048)
    assert {(point.scenario, point.component) for point in points} == {
        (name, component) for name, scenario in SCENARIOS.items() for component in scenario.components
    }
    decoded = {(point.batch_size, point.cached) for point in points if point.scenario == "decode"}
    assert {0, 2000} <= {cached for _, cached in decoded}
    assert 16 in {batch for batch, _ in decoded}
    lengths = {point.seq_len for point in points if point.scenario == "prefill"}
    assert {8, 2048} <= lengths
    assert all(not point.cached for point in points if point.scenario != "decode")


def test_given_options_select_exactly_their_points() -> None:
    selection = Selection(
        ["prefill", "decode"], ["attn", "mlp"], [Shape(3, 5), Shape(1, 1, 7)], ["float32", "bfloat16"]
    )
    shapes = {(p.scenario, p.component, p.shape) for p in selection.points(64) if p.dtype == "bfloat16"}
    assert shapes == {
        *(("prefill", "attn", "3x5"), ("prefill", "mlp", "3x5"), ("decode", "attn", "3x5"), ("decode", "attn", "1x1+7"))
    }


def test_shapes_beyond_the_model_are_left_out_or_raise() -> None:
    assert max(p.seq_len + p.cached for p in Selection(["prefill", "decode"]).points(512)) == 512
    with pytest.raises(UsageError, match="512 positions"):
        Selection(shapes=[Shape(1, 513)]).points(512)
    assert [p.shape for p in Selection(["generate"], ["model"]).points(512)] == ["1x128"]


def test_selection_of_nothing_raises() -> None:
    with pytest.raises(UsageError, match="decode is for attn"):
        Selection(["decode"], ["mlp"]).points(512)
