"""Two sides of one axis: which cells are paired, which errors are divided, and where the sides first differ."""

from __future__ import annotations

import math

import pytest
from made_records import a_finding, a_result, a_run

from cgverify.common.errors import UsageError
from cgverify.common.records import CellResult, Verdict
from cgverify.runs.baseline import StoredRun
from cgverify.runs.comparison.across import across, across_runs, first_differences


def stored(*results: CellResult) -> StoredRun:
    return StoredRun(a_run(), results)


def taps(q: float | None, z: float | None, verdict: Verdict = Verdict.BITWISE) -> tuple[object, ...]:
    return (a_finding("hook_q", "project_q", candidate_error=q), a_finding(verdict=verdict, candidate_error=z))


def test_cells_equal_in_all_other_axes_are_paired() -> None:
    run = stored(
        a_result(*taps(1e-7, 2e-7), layer=0),
        a_result(*taps(1e-7, 2e-7), layer=1),
        a_result(*taps(1e-7, 2e-7), layer=2, seed=1),
        a_result(*taps(1e-7, 4e-7), layer=1, dtype="bfloat16"),
        a_result(*taps(1e-7, 8e-7, Verdict.BOUNDED), layer=0, dtype="bfloat16"),
    )
    found = across("dtype", ("float32", "bfloat16"), (run, run))
    assert (found.cells, found.only_first, found.only_second) == (2, 1, 0)
    assert {(pair.cell.layer, pair.finding.tap): pair.ratio for pair in found.pairs} == {
        (0, "hook_q"): 1.0,
        (0, "hook_z"): pytest.approx(4.0),
        (1, "hook_q"): 1.0,
        (1, "hook_z"): pytest.approx(2.0),
    }
    (first,) = first_differences(found.pairs)
    assert first.of_error is not None
    assert first.of_error.finding.stage == "mix"
    assert first.of_verdict is not None
    assert (first.of_verdict.cell.layer, first.of_verdict.finding.stage) == (0, "mix")


def test_rotary_dims_are_given_as_text() -> None:
    run = stored(a_result(), a_result(rotary_dim="none"))
    assert across("rotary_dim", ("8", "none"), (run, run)).cells == 1


def test_ratio_is_infinite_or_missing_where_it_must_be() -> None:
    first = stored(a_result(*taps(0.0, 0.0)))
    second = stored(a_result(*taps(1e-3, 0.0), a_finding("hook_out", "output")))
    ratios = {pair.finding.tap: pair.ratio for pair in across_runs(("a", "b"), (first, second)).pairs}
    assert ratios == {"hook_q": math.inf, "hook_z": None, "hook_out": None}


def test_equal_runs_differ_nowhere() -> None:
    run = stored(a_result(), a_result(layer=1))
    (first,) = first_differences(across_runs(("a", "b"), (run, stored(*run.results))).pairs)
    assert first.of_error is None
    assert first.of_verdict is None


def test_one_value_is_compared_between_two_runs() -> None:
    before, after = stored(a_result(*taps(1.0, 1.0))), stored(a_result(*taps(2.0, 1.0)), a_result(candidate="d"))
    found = across("candidate", ("c", "c"), (before, after))
    assert [pair.ratio for pair in found.pairs] == [2.0, 1.0]


@pytest.mark.parametrize(
    ("axis", "values", "message"),
    [
        ("dtyp", ("float32", "bfloat16"), "did you mean 'dtype'"),
        ("dtype", ("float32", "bfloat61"), "Unknown dtype of the run 'bfloat61'"),
        ("dtype", ("float32", "float32"), "name two values"),
    ],
)
def test_sides_that_cannot_be_compared_are_refused(axis: str, values: tuple[str, str], message: str) -> None:
    run = stored(a_result(), a_result(dtype="float16"))
    with pytest.raises(UsageError, match=message):
        across(axis, values, (run, run))
