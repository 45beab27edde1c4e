"""The self-test of references: none of the seeded faults passes, and each sentence names the right side."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cgverify.selftest.candidates import KnownReference, ReferenceFault, ReferenceVariant
from cgverify.selftest.changed_references import reference_results
from cgverify.selftest.result import Outcome, SelfTestResult
from cgverify.selftest.seeded import FAULTS, REFERENCES
from cgverify.selftest.seeded import references as seeded
from cgverify.selftest.self_test import exit_code
from cgverify.selftest.variants import VARIANTS


def results(*known: KnownReference, dtype: str = "float32", quick: bool = True) -> list[SelfTestResult]:
    return list(reference_results(known, [dtype], ["cpu"], quick))


def fault(name: str) -> ReferenceFault:
    return next(each for each in seeded.FAULTS if each.name == name)


OTHERS = [pytest.param(dtype, marks=pytest.mark.slow) for dtype in ("float64", "float32", "float16")]


@pytest.mark.parametrize("dtype", ["bfloat16", *OTHERS])
def test_no_fault_passes_and_every_right_reference_does(dtype: str) -> None:
    found = results(*REFERENCES, dtype=dtype)
    assert exit_code(found) == 0, [(each.known.name, each.outcome) for each in found if each.outcome.fails]
    outcomes = {each.known.name: each.outcome for each in found}
    assert {outcomes[each.name] for each in seeded.VARIANTS} == {Outcome.HELD}
    assert {outcomes[each.name] for each in seeded.FAULTS} == {Outcome.REFUSED, Outcome.SUSPECT}
    assert list(outcomes.values()).count(Outcome.SUSPECT) >= 7
    assert all(each.first is not None for each in found if isinstance(each.known, ReferenceFault))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_faults_in_all_components_and_cases_are_suspect(dtype: str) -> None:
    suspect = [each for each in seeded.FAULTS if each.stages]
    assert {each.outcome for each in results(*suspect, dtype=dtype, quick=False)} == {Outcome.SUSPECT}


def test_fault_with_another_name_is_wrongly_blamed() -> None:
    (refused,) = results(replace(fault("other_epsilon"), named="ln_f has eps"))
    (suspect,) = results(replace(fault("mask_dropped"), stages=frozenset({"rope"})))
    assert refused.outcome is suspect.outcome is Outcome.WRONGLY_BLAMED
    assert exit_code([refused]) == exit_code([suspect]) == 1


def test_fault_that_changes_nothing_is_missed() -> None:
    right = seeded.VARIANTS[0]
    (result,) = results(ReferenceFault(right.candidate, right.kinds, "attn"))
    assert result.outcome is Outcome.MISSED
    assert exit_code([result]) == 1


def test_right_reference_that_is_refused_is_a_false_alarm() -> None:
    refused, suspect = fault("other_epsilon"), fault("mask_dropped")
    for result in results(*(ReferenceVariant(each.candidate, each.kinds) for each in (refused, suspect))):
        assert result.outcome is Outcome.FALSE_ALARM


def test_references_are_many_and_their_names_unique() -> None:
    names = [known.name for known in (*FAULTS, *VARIANTS, *REFERENCES)]
    assert len(set(names)) == len(names)
    assert len(seeded.FAULTS) >= 33
    assert all(known.sentence.endswith(".") and len(known.sentence.splitlines()) == 1 for known in REFERENCES)
