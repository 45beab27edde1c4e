"""The exam marks rightly: what is seen, what is missed, and what nothing can show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.checkpoint.resolve import resolve
from cgverify.common.records import Verdict
from cgverify.plan.cells import CASE_KINDS
from cgverify.selftest.answer import Answer, Outcome
from cgverify.selftest.entry import Entry, Fault, Variant, fault
from cgverify.selftest.exam import MODEL, Exam, exit_code, mark
from cgverify.selftest.seeded.feed_forward import erf_gelu
from cgverify.selftest.seeded.mixing import HeadsSwapped
from cgverify.selftest.seeded.precision import OutputInBfloat16
from cgverify.selftest.seeded.rotation import PositionsIgnored
from cgverify.selftest.seeded.scores import ScaleSlightlyOff
from cgverify.selftest.table import FAULTS, VARIANTS
from cgverify.selftest.variants import ReciprocalScale, SoftmaxByHand
from cgverify.verification.checkpoint_verifier import CheckpointVerifier


def sit(*entries: Entry, dtypes: Sequence[str] = ("float32",), quick: bool = False) -> list[Answer]:
    source = resolve(MODEL)
    exam = Exam(entries, tuple(dtypes), ("cpu",), quick)
    return list(mark(exam, CheckpointVerifier(source, exam.candidates()).verify_all(exam.plan(source)), source))


class NoFault(CodeGenAttentionBridge):
    """Nothing is wrong."""


class ShiftedByOneBit(CodeGenAttentionBridge):
    """One unit in the last place off, and wrong by half in float64."""

    def _output(self, z: torch.Tensor) -> torch.Tensor:
        output = super()._output(z)
        return output * 1.5 if output.dtype == torch.float64 else torch.nextafter(output, output + 1)


def test_a_fault_is_caught_where_it_broke() -> None:
    (answer,) = sit(fault(HeadsSwapped, "mix"))
    assert answer.outcome is Outcome.CAUGHT
    assert answer.blamed == ("mix",)
    assert answer.rightly_blamed
    assert answer.case == "default"
    assert answer.first is not None
    assert answer.first.verdict is Verdict.DIVERGED
    assert exit_code([answer]) == 0


def test_blame_of_another_stage_is_no_right_blame() -> None:
    (answer,) = sit(fault(HeadsSwapped, "softmax"), quick=True)
    assert answer.outcome is Outcome.CAUGHT
    assert answer.rightly_blamed is False


def test_what_is_no_fault_changes_no_bit() -> None:
    (answer,) = sit(fault(NoFault, "scores"))
    assert answer.outcome is Outcome.NO_BIT
    assert answer.rightly_blamed is None
    assert exit_code([answer]) == 0


def test_a_fault_of_precision_changes_no_bit_in_that_precision_alone() -> None:
    narrow, wide = sit(fault(OutputInBfloat16, "output"), dtypes=("bfloat16", "float32"), quick=True)
    assert (narrow.outcome, wide.outcome) == (Outcome.NO_BIT, Outcome.CAUGHT)


def test_the_erf_form_of_gelu_is_below_the_resolution_of_16_bits() -> None:
    answers = sit(fault(erf_gelu, "activation", kinds=("mlp",)), dtypes=("float32", "bfloat16", "float16"))
    assert [answer.outcome for answer in answers] == [Outcome.CAUGHT, Outcome.BELOW, Outcome.BELOW]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_below_resolution_is_asked_of_the_same_inputs(dtype: str) -> None:
    """The scale of a gradient is judged in parts of its own elements, which other inputs would make other ones."""
    source = resolve(MODEL)
    exam = Exam((fault(erf_gelu, "gradient", kinds=("mlp",), case="backward"),), (dtype,), ("cpu",), quick=True)
    (answer,) = mark(exam, CheckpointVerifier(source, exam.candidates()).verify_all(exam.plan(source)), source)
    assert answer.outcome is Outcome.BELOW


def test_a_fault_that_no_probe_shows_and_that_float64_makes_large_is_a_miss() -> None:
    (answer,) = sit(fault(ShiftedByOneBit, "output", kinds=("attn",)), quick=True)
    assert answer.outcome is Outcome.MISSED
    assert exit_code([answer]) == 1


def test_a_fault_that_its_cases_cannot_show_changes_no_bit_there() -> None:
    """The default case cannot show ignored positions; that is not counted as caught."""
    (answer,) = sit(fault(PositionsIgnored, "rope", case="default"), quick=True)
    assert answer.outcome is Outcome.NO_BIT


def test_variants_hold_and_a_fault_among_them_is_a_false_alarm() -> None:
    answers = sit(
        Variant(ReciprocalScale, ("attn",)), Variant(SoftmaxByHand, ("attn",)), Variant(ScaleSlightlyOff, ("attn",))
    )
    assert [answer.outcome for answer in answers] == [Outcome.HELD, Outcome.HELD, Outcome.FALSE_ALARM]
    assert exit_code(answers) == 1
    assert exit_code(answers[:2]) == 0


@pytest.mark.parametrize("entry", [*FAULTS, *VARIANTS], ids=lambda entry: entry.name)
def test_every_entry_is_told_and_can_be_named(entry: Entry) -> None:
    assert entry.candidate.__doc__
    assert len(entry.candidate.__doc__.splitlines()) == 1
    assert entry.kinds
    assert not isinstance(entry, Fault) or (entry.stages and entry.case in CASE_KINDS)


def test_the_table_is_large_enough_and_names_are_unique() -> None:
    names = [entry.name for entry in (*FAULTS, *VARIANTS)]
    assert len(set(names)) == len(names)
    assert len(FAULTS) >= 80
    assert len(VARIANTS) >= 12


def test_variants_compute_something_else() -> None:
    """A variant that was bit for bit the bridge would prove nothing; most are not."""
    source = resolve(MODEL)
    exam = Exam(VARIANTS, ("float32",), ("cpu",), quick=True)
    results: dict[str, Any] = {}
    for result in CheckpointVerifier(source, exam.candidates()).verify_all(exam.plan(source)):
        results.setdefault(result.cell.candidate, []).append(result.verdict)
    other = [name for name, verdicts in results.items() if set(verdicts) != {Verdict.BITWISE}]
    assert len(other) >= 12
