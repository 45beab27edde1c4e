"""Verify the hidden faults, one round of cases after another, until a case sees them.

| round | cases |
|---|---|
| 1 | of a plain run, those that should see the fault, on the first component that it changes |
| 2 | all of a plain run, as far as it has them |
| 3 | those that should see the fault, in full |
| 4 | all others, those of a prompt only for a fault of the whole model |

So a fault that a plain run sees costs little, and the result says which it was. `--quick` has two other
rounds: the first component that the fault changes in the first case that should see it, then the block too, in all
cases that should see it. Faults that no case is known to see are run too: a case that does see one makes its mark
stale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from cgverify.checkpoint.source import Source
from cgverify.common.records import Cell, CellResult
from cgverify.observe.candidate import find_candidate
from cgverify.plan.axes import Axes
from cgverify.plan.cases import CASE_KINDS, DEFAULT_CASES, PER_LAYER, PROMPTED, SAMPLED
from cgverify.plan.cells import cells
from cgverify.selftest.candidates import HiddenFault
from cgverify.selftest.result import Outcome, SelfTestResult, result_of
from cgverify.selftest.self_test import LAYER, described
from cgverify.selftest.visibility import explain_miss

Verify = Callable[[Sequence[Cell]], Iterable[CellResult]]
Round = Callable[[HiddenFault], tuple[Iterable[str], Sequence[str]]]
"""The kinds of component and the cases in which a round verifies a fault."""


def hidden_results(
    known: Sequence[HiddenFault],
    dtypes: Sequence[str],
    devices: Sequence[str],
    quick: bool,
    verify: Verify,
    source: Source,
) -> Iterator[SelfTestResult]:
    """Yield a result for each fault, dtype and device, in the order of the faults.

    Args:
        verify: returns the results of cells, in any order.
    """
    settings = [(fault, dtype, device) for fault in known for dtype in dtypes for device in devices]
    found: dict[tuple[HiddenFault, str, str], SelfTestResult] = {}
    rounds: tuple[Round, ...] = (_first, _expected) if quick else (_expected_plain, _plain, _on_request, _others)
    for kinds_and_cases in rounds:
        open_ones = [setting for setting in settings if setting not in found or not found[setting].failed_cases]
        plans = {setting: _cells(setting, *kinds_and_cases(setting[0]), source) for setting in open_ones}
        results = {result.cell.id: result for result in verify([cell for plan in plans.values() for cell in plan])}
        for (fault, dtype, device), plan in plans.items():
            own = [results[cell.id] for cell in plan if cell.id in results]
            result = result_of(fault, dtype, device, own)
            by_plain = None if quick else kinds_and_cases in (_expected_plain, _plain) and bool(result.failed_cases)
            found[fault, dtype, device] = replace(result, by_plain=by_plain)
    for setting in settings:
        yield _explained(setting, found[setting], source)


def _first(fault: HiddenFault) -> tuple[Iterable[str], Sequence[str]]:
    return fault.kinds[:1], fault.cases[:1]


def _expected(fault: HiddenFault) -> tuple[Iterable[str], Sequence[str]]:
    return _with_block(fault, fault.kinds[:1]), fault.cases


_RUN_IN_FULL = [case for case in DEFAULT_CASES if case not in SAMPLED]


def _expected_plain(fault: HiddenFault) -> tuple[Iterable[str], Sequence[str]]:
    return fault.kinds[:1], [case for case in fault.cases if case in _RUN_IN_FULL]


def _plain(fault: HiddenFault) -> tuple[Iterable[str], Sequence[str]]:
    return _with_block(fault, fault.kinds), DEFAULT_CASES


def _on_request(fault: HiddenFault) -> tuple[Iterable[str], Sequence[str]]:
    return _with_block(fault, fault.kinds), [case for case in fault.cases if case not in _RUN_IN_FULL]


def _others(fault: HiddenFault) -> tuple[Iterable[str], Sequence[str]]:
    possible = [case for case in CASE_KINDS if case not in PROMPTED or (case == "model" and "model" in fault.kinds)]
    others = [case for case in possible if case not in (*_RUN_IN_FULL, *fault.cases)]
    return _with_block(fault, fault.kinds), others


def _with_block(fault: HiddenFault, kinds: Sequence[str]) -> Iterable[str]:
    """Return kinds of component, and the block if the fault is in a layer: a plain run has it too."""
    in_layer = any(kind in PER_LAYER for kind in fault.kinds)
    return dict.fromkeys((*kinds, "block") if in_layer else kinds)


def _cells(
    setting: tuple[HiddenFault, str, str], kinds: Iterable[str], cases: Sequence[str], source: Source
) -> list[Cell]:
    """Return the cells of a fault in components of these kinds, as far as the cases are for them."""
    fault, dtype, device = setting
    components = _fit(kinds, cases)
    if not components:
        return []
    layer = LAYER if fault.layer is None else fault.layer
    axes = Axes(
        candidates=[fault.bridge],
        dtypes=[dtype],
        devices=[device],
        cases=[*cases],
        layers=[layer],
        components=components,
    )
    return cells(described(source), axes)


def _fit(kinds: Iterable[str], cases: Sequence[str]) -> list[str]:
    """Return the kinds of component that one of the cases is for."""
    return [kind for kind in kinds if any(kind in CASE_KINDS[case] for case in cases)]


def _explained(setting: tuple[HiddenFault, str, str], result: SelfTestResult, source: Source) -> SelfTestResult:
    """Return a result with the reason for a miss. A hidden fault changes something, so that no bit is no reason."""
    fault, dtype, _ = setting
    if fault.is_unseen_in(dtype):
        return replace(result, outcome=Outcome.STALE if result.failed_cases else Outcome.UNSEEN)
    if result.outcome is not Outcome.MISSED:
        return result
    cases = [case for case in fault.cases if case not in PROMPTED]
    kinds = _with_block(fault, fault.kinds)
    own = _cells(setting, kinds, cases, source) if cases and result.dtype in ("bfloat16", "float16") else []
    outcome = explain_miss(find_candidate(fault.bridge), own, source) if own else Outcome.MISSED
    return replace(result, outcome=outcome) if outcome is Outcome.BELOW else result
