"""The self-test tells caught, missed and invisible faults from one another, and variants from false alarms."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from faults import ShiftedByOneBit, run_self_test, verify_known

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.checkpoint.resolve import resolve
from cgverify.common.records import Cell, CellResult, Finding, Verdict
from cgverify.plan.cases import CASE_KINDS
from cgverify.selftest.candidates import Fault, KnownCandidate, Variant, fault
from cgverify.selftest.hidden_faults import hidden_results
from cgverify.selftest.result import Outcome
from cgverify.selftest.seeded import FAULTS, HIDDEN
from cgverify.selftest.seeded.feed_forward import erf_gelu
from cgverify.selftest.seeded.mixing import HeadsSwapped
from cgverify.selftest.seeded.precision import OutputInBfloat16
from cgverify.selftest.seeded.rotation import PositionsIgnored
from cgverify.selftest.seeded.scores import ScaleSlightlyOff
from cgverify.selftest.self_test import MODEL, SelfTest, exit_code
from cgverify.selftest.variants import VARIANTS, ReciprocalScale, SoftmaxByHand, strided_weights


class NoFault(CodeGenAttentionBridge):
    """Nothing is wrong."""


def test_fault_is_caught_in_its_stage() -> None:
    (result,) = run_self_test(fault(HeadsSwapped, "mix"), quick=True)
    assert result.outcome is Outcome.CAUGHT
    assert result.blamed == ("mix",)
    assert result.rightly_blamed
    assert result.case == "default"
    assert result.first is not None
    assert result.first.verdict is Verdict.DIVERGED
    assert exit_code([result]) == 0


def test_fault_blamed_on_another_stage_is_wrongly_blamed() -> None:
    (result,) = run_self_test(fault(HeadsSwapped, "softmax"), quick=True)
    assert result.outcome is Outcome.CAUGHT
    assert result.rightly_blamed is False


def test_correct_bridge_as_fault_changes_no_bit() -> None:
    (result,) = run_self_test(fault(NoFault, "scores"), quick=True)
    assert result.outcome is Outcome.NO_BIT
    assert result.rightly_blamed is None
    assert exit_code([result]) == 0


def test_bfloat16_fault_in_bfloat16_changes_no_bit() -> None:
    dtypes = ("bfloat16", "float32")
    narrow, wide = run_self_test(fault(OutputInBfloat16, "output"), dtypes=dtypes, quick=True)
    assert (narrow.outcome, wide.outcome) == (Outcome.NO_BIT, Outcome.CAUGHT)


def test_erf_gelu_in_16_bits_is_below_resolution() -> None:
    dtypes = ("float32", "bfloat16", "float16")
    results = run_self_test(fault(erf_gelu, "activation", kinds=("mlp",)), dtypes=dtypes)
    assert [result.outcome for result in results] == [Outcome.CAUGHT, Outcome.BELOW, Outcome.BELOW]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_erf_gelu_gradient_in_16_bits_is_below_resolution(dtype: str) -> None:
    """The scale of a gradient is measured in parts of its own elements, so float64 must have the same inputs."""
    seeded = fault(erf_gelu, "gradient", kinds=("mlp",), case="backward")
    (result,) = run_self_test(seeded, dtypes=(dtype,), quick=True)
    assert result.outcome is Outcome.BELOW


def test_fault_that_only_float64_shows_is_missed() -> None:
    (result,) = run_self_test(fault(ShiftedByOneBit, "output", kinds=("attn",)), quick=True)
    assert result.outcome is Outcome.MISSED
    assert exit_code([result]) == 1


def test_fault_that_its_case_cannot_show_changes_no_bit() -> None:
    """The default case cannot show ignored positions, so the fault does not count as caught."""
    (result,) = run_self_test(fault(PositionsIgnored, "rope", case="default"), quick=True)
    assert result.outcome is Outcome.NO_BIT


@pytest.mark.parametrize(("verdict", "rounds"), [(Verdict.DIVERGED, 1), (Verdict.BITWISE, 2)])
def test_quick_round_follows_only_if_a_fault_is_unseen(verdict: Verdict, rounds: int) -> None:
    hidden = next(each for each in HIDDEN if len(each.cases) > 1 and each.kinds[0] == "attn")
    asked: list[Sequence[Cell]] = []

    def verify(cells: Sequence[Cell]) -> list[CellResult]:
        asked.append(cells)
        finding = Finding(step="", tap="hook_out", stage="output", verdict=verdict)
        return [CellResult(cell=cell, findings=(finding,), seconds=0.0) for cell in cells]

    (result,) = hidden_results([hidden], ["float32"], ["cpu"], True, verify, resolve(MODEL))
    assert (result.outcome is Outcome.CAUGHT) == (rounds == 1)
    assert [(cell.kind, cell.case) for cell in asked[0]] == [("attn", hidden.cases[0])]
    assert {cell.case for cell in asked[1]} == (set(hidden.cases) if rounds == 2 else set())
    assert {cell.kind for cell in asked[1]} >= ({"block"} if rounds == 2 else set())


def test_fault_among_variants_is_a_false_alarm() -> None:
    candidates = (ReciprocalScale, SoftmaxByHand, ScaleSlightlyOff)
    results = run_self_test(*(Variant(candidate, ("attn",)) for candidate in candidates), quick=True)
    assert [result.outcome for result in results] == [Outcome.HELD, Outcome.HELD, Outcome.FALSE_ALARM]
    assert exit_code(results) == 1
    assert exit_code(results[:2]) == 0


def test_fault_that_reads_the_config_is_found_by_its_stage() -> None:
    (result,) = run_self_test(next(each for each in FAULTS if each.name == "output_heads_reordered"), quick=True)
    assert result.blamed == ("output",)


def test_strided_weights_of_the_unembedding_hold() -> None:
    """No block is in view, where q, k and v have no weights of their own."""
    (result,) = run_self_test(Variant(strided_weights, ("unembed",)), quick=True)
    assert result.outcome is Outcome.HELD


@pytest.mark.parametrize("known", [*FAULTS, *VARIANTS], ids=lambda known: known.name)
def test_candidate_has_one_sentence_and_known_stages(known: KnownCandidate) -> None:
    assert known.sentence
    assert len(known.sentence.splitlines()) == 1
    assert known.kinds
    assert not isinstance(known, Fault) or (known.stages and known.case in CASE_KINDS)


def test_candidates_are_many_and_their_names_unique() -> None:
    names = [known.name for known in (*FAULTS, *VARIANTS)]
    assert len(set(names)) == len(names)
    assert len(FAULTS) >= 269
    assert len(VARIANTS) >= 25


@pytest.mark.slow
def test_most_variants_change_a_bit() -> None:
    """A variant that is equal to the bridge bit for bit would prove nothing."""
    verdicts: dict[str, set[Verdict]] = {}
    for result in verify_known(SelfTest(VARIANTS, ("float32",), ("cpu",), quick=True)):
        verdicts.setdefault(result.cell.candidate, set()).add(result.verdict)
    assert sum(found != {Verdict.BITWISE} for found in verdicts.values()) >= 12
