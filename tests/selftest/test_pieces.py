"""The self-test in pieces: the same results from any number of processes, and an error if a process is lost."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from faults import ShiftedByOneBit

from cgverify.common.errors import CgverifyError, UsageError
from cgverify.selftest import pieces as module
from cgverify.selftest.candidates import KnownCandidate, fault
from cgverify.selftest.pieces import Finished, pieces, results_in_order, run_pieces
from cgverify.selftest.seeded import FAULTS, HIDDEN, REFERENCES
from cgverify.selftest.seeded.mixing import HeadsSwapped
from cgverify.selftest.variants import VARIANTS

DTYPES, DEVICES = ("float32", "bfloat16"), ("cpu",)


def forked(tasks: list[Any], jobs: int) -> list[Finished]:
    return list(module._forked(tasks, jobs))


@pytest.mark.parametrize("quick", [True, False])
def test_pieces_have_every_candidate_in_its_dtypes(quick: bool) -> None:
    every = (*FAULTS, *VARIANTS, *HIDDEN, *REFERENCES)
    planned = [(place, piece.dtype) for piece in pieces(every, DTYPES, DEVICES, quick) for place in piece.known]
    assert len(set(planned)) == len(planned) == len(every) * (1 if quick else len(DTYPES))
    assert {place for place, _ in planned} == set(range(len(every)))


def test_results_do_not_depend_on_the_number_of_processes() -> None:
    every: list[KnownCandidate] = [
        fault(HeadsSwapped, "mix"),
        HIDDEN[0],
        REFERENCES[0],
        fault(ShiftedByOneBit, "output", kinds=("attn",)),
    ]
    planned = list(pieces(every, DTYPES, DEVICES, quick=True))
    tasks = [piece.run for piece in planned]
    one, two = (results_in_order(forked(tasks, jobs), every, DTYPES, DEVICES) for jobs in (1, 2))
    assert one == two
    assert [result.known for result in one] == every
    assert [result.dtype for result in one] == ["float32", "bfloat16", "float32", "bfloat16"]


def test_lost_process_ends_the_self_test() -> None:
    with pytest.raises(CgverifyError, match="process of the self-test was lost"):
        forked([lambda: os.kill(os.getpid(), signal.SIGKILL)], 2)


def test_error_in_a_process_keeps_its_sentence_and_code() -> None:
    def refuse() -> Finished:
        raise UsageError("This cannot be run.")

    with pytest.raises(CgverifyError, match="This cannot be run") as caught:
        forked([refuse, lambda: Finished((), frozenset())], 1)
    assert caught.value.exit_code == 2


def test_pieces_run_in_this_process_if_it_cannot_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_forked", None)
    assert list(run_pieces([], 2, 2)) == []
