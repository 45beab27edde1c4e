"""Run the self-test in pieces: some of the candidates in one dtype, each piece in a process of its own.

The pieces do not depend on the number of processes, and each is forked from this process, which has verified nothing,
so the results do not depend on it either. If this process cannot be forked, it runs the pieces one after another.
"""

from __future__ import annotations

import gc
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from cgverify.checkpoint.resolve import resolve
from cgverify.common.errors import CgverifyError
from cgverify.common.process import only_new_objects_collected
from cgverify.common.processors import processors
from cgverify.common.records import Cell, CellResult, Verdict
from cgverify.observe.candidate import find_candidate
from cgverify.runs.execute.processes import may_fork
from cgverify.runs.execute.worker_error import worker_error
from cgverify.selftest.candidates import HiddenFault, KnownCandidate, KnownReference
from cgverify.selftest.changed_references import reference_results
from cgverify.selftest.hidden_faults import hidden_results
from cgverify.selftest.result import SelfTestResult
from cgverify.selftest.self_test import MODEL, SelfTest, prompt_of
from cgverify.verification.checkpoint_verifier import CheckpointVerifier
from cgverify.verification.judge import Judge

PARTS = 16
"""The pieces of each dtype. More would share the work more evenly, and compute the reference more often."""


@dataclass(frozen=True)
class Finished:
    """What a piece found."""

    results: tuple[tuple[int, dict[str, Any]], ...]
    """The place of each result's candidate, since not all can be pickled, and the other fields."""
    errors: frozenset[str]
    """Why cells could not be run."""


@dataclass(frozen=True)
class Piece:
    """Candidates in one dtype."""

    known: Mapping[int, KnownCandidate]
    """By their place among all candidates."""
    dtype: str
    devices: tuple[str, ...]
    quick: bool

    @property
    def whole_models(self) -> int:
        """The number of candidates that are verified in the whole model, which takes longest."""
        return sum("model" in known.kinds for known in self.known.values())

    def run(self) -> Finished:
        """Verify the candidates, those of one sort after those of another."""
        source = resolve(MODEL)
        hidden = [each for each in self.known.values() if isinstance(each, HiddenFault)]
        references = [each for each in self.known.values() if isinstance(each, KnownReference)]
        others = tuple(each for each in self.known.values() if not isinstance(each, HiddenFault | KnownReference))
        by_name = {each.bridge: find_candidate(each.bridge) for each in (*others, *hidden)}
        finished: list[CellResult] = []
        verifier = CheckpointVerifier(source, by_name, prompt_of(source), Judge(with_sentence=False))

        def verify(cells: Sequence[Cell]) -> list[CellResult]:
            done = list(verifier.verify_all(cells))
            finished.extend(done)
            return done

        self_test, asked = SelfTest(others, (self.dtype,), self.devices, self.quick), ((self.dtype,), self.devices)
        results = [
            *self_test.results(verify(self_test.plan(source)), source),
            *hidden_results(hidden, *asked, self.quick, verify, source),
            *reference_results(references, *asked, self.quick),
        ]
        places = {id(known): place for place, known in self.known.items()}
        errors = {found.message for one in finished for found in one.findings if found.verdict is Verdict.ERROR}
        fields = [(places[id(result.known)], {**vars(result)}) for result in results]
        for _, own in fields:
            del own["known"]
        return Finished(tuple(fields), frozenset(errors))


def pieces(
    known: Sequence[KnownCandidate], dtypes: Sequence[str], devices: Sequence[str], quick: bool
) -> Iterator[Piece]:
    """Yield the pieces. Each candidate is tried in every dtype, or if `quick`, in one, which they are dealt in turn."""
    placed = list(enumerate(known))
    for index, dtype in enumerate(dtypes):
        own = placed[index :: len(dtypes)] if quick else placed
        size = max(1, -(-len(own) // PARTS))
        for start in range(0, len(own), size):
            yield Piece(dict(own[start : start + size]), dtype, tuple(devices), quick)


def run_pieces(planned: Sequence[Piece], threads: int | None, jobs: int | None) -> Iterator[Finished]:
    """Yield what each piece found, in any order.

    Args:
        threads: of torch, in each process; None is torch's own number.
        jobs: the number of processes; None is one for each processor.
    """
    devices = {device for piece in planned for device in piece.devices}
    if may_fork(threads, devices):
        longest_first = sorted(planned, key=lambda piece: piece.whole_models, reverse=True)
        return _forked([piece.run for piece in longest_first], jobs or processors())
    return _in_turn(planned)


def results_in_order(
    finished: Iterable[Finished], known: Sequence[KnownCandidate], dtypes: Sequence[str], devices: Sequence[str]
) -> list[SelfTestResult]:
    """Return the results of all pieces, in the order of the candidates, then of the dtypes, then of the devices."""
    placed = [(place, SelfTestResult(known[place], **own)) for piece in finished for place, own in piece.results]
    placed.sort(key=lambda one: (one[0], dtypes.index(one[1].dtype), devices.index(one[1].device)))
    return [result for _, result in placed]


def _in_turn(planned: Sequence[Piece]) -> Iterator[Finished]:
    with only_new_objects_collected():
        for piece in planned:
            yield piece.run()


def _forked(tasks: Sequence[Callable[[], Finished]], jobs: int) -> Iterator[Finished]:
    context = multiprocessing.get_context("fork")
    waiting, running = list(tasks), dict[Connection, BaseProcess]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_send, args=(theirs, waiting.pop(0)), daemon=True)
                process.start()
                theirs.close()  # so that reading from the pipe fails as soon as the process is gone
                running[ours] = process
            for pipe in wait(list(running)):
                assert isinstance(pipe, Connection)
                try:
                    found = pipe.recv()
                except EOFError:
                    raise CgverifyError(
                        "A process of the self-test was lost: if memory is short, lower --jobs."
                    ) from None
                running.pop(pipe).join()
                if isinstance(found, CgverifyError):
                    raise found
                yield found
    finally:
        for left in running.values():
            left.kill()
            left.join()


def _send(pipe: Connection, task: Callable[[], Finished]) -> None:
    """Run a piece and send what it found, or the error that ended it. This runs in the forked process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent process, which stops this one
    gc.freeze()  # what was imported before is in no garbage collection, of which each freed bridge needs one
    try:
        pipe.send(task())
    except Exception as error:
        pipe.send(worker_error(error))
