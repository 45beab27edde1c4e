"""A run and its baseline: what counts as worse, gone or new, and which cells and taps are compared."""

from __future__ import annotations

import pytest
from made_records import ENVIRONMENT, a_finding, a_result, a_run

from cgverify.common.errors import UsageError
from cgverify.common.records import CellResult, Run, Verdict
from cgverify.runs.baseline import StoredRun
from cgverify.runs.comparison.changes import Comparison, compare
from cgverify.runs.comparison.criteria import criteria, regressions


def compared(before: list[CellResult], after: list[CellResult], run: Run | None = None) -> Comparison:
    return compare(StoredRun(a_run(), before), StoredRun(run or a_run(), after))


def fails(comparison: Comparison, *names: str) -> list[str]:
    return regressions(comparison, criteria(names))


def test_run_compared_with_itself_has_no_changes() -> None:
    results = [a_result(layer=layer) for layer in range(3)]
    same = compared(results, list(reversed(results)))
    assert (same.cells, same.taps) == (3, 3)
    assert (
        same.worse == same.better == same.growths == same.lost == same.stopped == same.started == same.differences == []
    )
    assert not fails(same, "worse", "diverged", "missing-cells", "r:1.1x")


ORDER = [Verdict.BITWISE, Verdict.ULP, Verdict.BOUNDED, Verdict.MISSING, Verdict.DIVERGED]


@pytest.mark.parametrize("before", ORDER)
@pytest.mark.parametrize("after", ORDER)
def test_verdicts_are_ordered(before: Verdict, after: Verdict) -> None:
    found = compared([a_result(a_finding(verdict=before))], [a_result(a_finding(verdict=after))])
    assert bool(found.worse) == (ORDER.index(after) > ORDER.index(before))
    assert bool(found.better) == (ORDER.index(after) < ORDER.index(before))
    assert bool(fails(found, "worse")) == bool(found.worse)
    assert bool(fails(found, "diverged")) == (bool(found.worse) and after.fails)


def test_candidate_that_raises_now_is_one_change() -> None:
    before = a_result(a_finding("hook_q"), a_finding("hook_z"))
    after = a_result(a_finding("boot", "boot", Verdict.DIVERGED, r=None, message="it raised"))
    found = compared([before], [after])
    assert [change.finding.tap for change in found.worse] == ["boot"]
    assert found.stopped == []
    assert fails(found, "diverged")


def test_failure_that_is_gone_is_better() -> None:
    conduct = a_finding("hook_z", "conduct", Verdict.DIVERGED, r=None)
    found = compared([a_result(a_finding(), conduct)], [a_result(a_finding())])
    assert [change.before for change in found.better] == [conduct]
    assert not found.stopped


def test_stopped_hooks_are_counted_by_cells() -> None:
    before = [a_result(a_finding("hook_q"), a_finding("hook_z"), layer=layer) for layer in range(3)]
    after = [
        a_result(a_finding("hook_q"), layer=0),
        a_result(a_finding("hook_q"), a_finding("hook_z", verdict=Verdict.MISSING, r=None), layer=1),
        a_result(a_finding("hook_q"), a_finding("hook_z"), silent_hooks=("hook_result",), layer=2),
    ]
    stopped = {hook.name: hook.cells for hook in compared(before, after).stopped}
    assert stopped == {"attn.hook_z": 2, "attn.hook_result": 1}
    assert {hook.name: hook.cells for hook in compared(after, before).started} == stopped


def test_forward_of_only_one_run_changes_no_hook() -> None:
    before = [a_result(a_finding("hook_q", step="prefill"))]
    after = [a_result(a_finding("hook_q", step="prefill"), a_finding("hook_z", step="chunk"))]
    assert compared(before, after).started == compared(after, before).stopped == []


@pytest.mark.parametrize("verdict", [Verdict.ERROR, Verdict.UNSUPPORTED])
def test_cell_no_longer_compared_is_missing_not_worse(verdict: Verdict) -> None:
    after = a_result(a_finding("", "", verdict, r=None, message="out of memory"))
    found = compared([a_result()], [after])
    assert found.lost[0].finding.message == "out of memory"
    assert not found.worse
    assert not found.stopped
    assert not found.regained
    assert fails(found, "missing-cells") == ["1 cell is no longer compared"]
    assert not fails(found, "worse", "diverged")
    back = compared([after], [a_result()])
    assert back.regained[0].finding.message == "out of memory"
    assert not back.lost
    assert not fails(back, "worse", "missing-cells")


def test_cell_with_one_refused_step_is_missing() -> None:
    before = a_result(a_finding(step="prefill"), a_finding(step="token 1"))
    after = a_result(a_finding(step="prefill"), a_finding("", "", Verdict.UNSUPPORTED, step="token 1", r=None))
    assert len(compared([before], [after]).lost) == 1


def test_new_and_gone_cells_are_grouped_by_their_new_axis() -> None:
    old = [a_result(layer=layer, seed=seed) for layer in range(10) for seed in range(2)]
    new_case = [a_result(layer=layer, case="text") for layer in range(10)]
    new_candidate = [
        a_result(layer=layer, candidate="other", case=case) for layer in range(10) for case in ("text", "x")
    ]
    combined = [a_result(layer=0, kind="mlp"), a_result(layer=1, kind="mlp", case="text")]
    found = compared([*old, combined[0]], [*old, combined[0], *new_case, *new_candidate, combined[1]])
    assert {(group.axis, group.value): group.cells for group in found.appeared_groups} == {
        ("case", "text"): 11,
        ("candidate", "other"): 20,
    }
    assert not fails(found, "worse", "missing-cells")
    gone = compared([*old, *new_case], old[:5])
    assert {(group.axis, group.value) for group in gone.vanished_groups} >= {("case", "text"), ("layer", "9")}
    assert fails(gone, "missing-cells") == ["25 cells are no longer compared"]


def test_new_combination_of_known_values_is_a_component() -> None:
    known = [a_result(kind="attn", case="text"), a_result(kind="mlp", case="default")]
    found = compared(known, [*known, a_result(kind="mlp", case="text")])
    assert [(group.axis, group.value) for group in found.appeared_groups] == [("component", "mlp, case text")]


def test_r_is_compared_over_all_layers_and_seeds() -> None:
    def cells(*figures: float) -> list[CellResult]:
        return [a_result(a_finding(r=r), layer=layer) for layer, r in enumerate(figures)]

    (growth,) = compared(cells(0.2, 0.1, 0.3), cells(0.2, 0.9, 0.3)).grown(2)
    assert (growth.before, growth.after, growth.cell.layer) == (0.3, 0.9, 1)
    assert not compared(cells(0.1, 0.3), cells(0.3, 0.3)).growths, "the greatest r of all layers is unchanged"
    assert fails(compared(cells(0.2), cells(0.4)), "r:2x") == ["1 tap's r grew by 2 times or more"]
    assert not fails(compared(cells(0.2), cells(0.4)), "r:2.1x")
    assert fails(compared(cells(0.0), cells(0.1)), "r:1000x"), "from exact to inexact is an infinite factor"


def test_other_weights_of_a_checkpoint_are_compared() -> None:
    found = compared(
        [a_result()], [a_result(a_finding(verdict=Verdict.BOUNDED), weights="e")], a_run(weights_digest="e")
    )
    assert len(found.worse) == 1
    assert [(each.part, each.name, each.after) for each in found.differences] == [("weights", "digest", "e")]


def test_equal_weights_are_paired_first() -> None:
    random, trained = a_result(), a_result(a_finding(verdict=Verdict.ULP), weights="trained")
    found = compared([random, trained], [trained, random])
    assert found.cells == 2
    assert not found.worse


def test_different_versions_flags_and_settings_are_named() -> None:
    other = {
        **ENVIRONMENT,
        "versions": {"torch": "2.14.0", "transformers": "5.23.0", "einops": "1"},
        "numerics": {"threads": 4, "tf32": False},
    }
    settings = {"model": "m", "weights": "auto", "rotary_dims": [], "candidate_sources": {"c": "abc"}}
    found = compared([a_result()], [a_result()], a_run(environment=other, settings=settings))
    assert [(f"{each.part}.{each.name}", each.before, each.after) for each in found.differences] == [
        ("versions.torch", "2.13.0", "2.14.0"),
        ("versions.einops", "–", "1"),
        ("numerics.threads", "2", "4"),
        ("source.c", "–", "abc"),
    ]


def test_times_are_compared_on_equal_machines_and_cells() -> None:
    before, after = [a_result(seconds=2.0)], [a_result(seconds=3.0)]
    times = compared(before, after).times
    assert times is not None
    assert times.factor == 1.5
    for part, value in (("machine", {"processor": "B"}), ("numerics", {"threads": 1})):
        assert compared(before, after, a_run(environment={**ENVIRONMENT, part: value})).times is None
    assert compared(before, [*after, a_result(layer=1)]).times is None, "the cells of a batch share their time"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["wors"], "did you mean 'worse'"),
        ([], "names nothing"),
        (["r:2"], "write r:2x"),
        (["r:1x"], "above 1"),
        (["r:manyx"], "write r:2x"),
        (["r"], "Unknown fail-on 'r'"),
    ],
)
def test_invalid_criteria_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        criteria(names)
