"""Run drawn sequences of calls, and shrink the first that fails."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cgverify.checkpoint.source import Source
from cgverify.common.errors import CgverifyError
from cgverify.common.records import Cell, CellResult, Finding, Verdict, WeightsView
from cgverify.plan.cells import weights_view
from cgverify.verification.fuzz.calls import Call, CallMaker, step_name
from cgverify.verification.fuzz.drawing import Example, examples
from cgverify.verification.fuzz.shrinking import shrink
from cgverify.verification.fuzz.subject import Judged, Subject, in_fork

SHRINK_SECONDS = 30
"""How long a failure is shrunk after the time of the hunt is over."""

Subjects = Mapping[tuple[WeightsView, str], Subject]
"""By the weights in view and the dtype."""


def subjects_of(source: Source, cells: Iterable[Cell]) -> Subjects:
    """Boot the candidate of cells, once for all that share the weights in view and the dtype."""
    found: dict[tuple[WeightsView, str], Subject] = {}
    for cell in cells:
        key = weights_view(cell), cell.dtype
        if key not in found:
            found[key] = Subject(source, cell)
        found[key].prepare(cell)
    return found


@dataclass
class Covered:
    """What a hunt has covered."""

    sequences: int = 0
    calls: int = 0
    shapes: set[tuple[str, int, int]] = field(default_factory=set)
    modes: Counter[str] = field(default_factory=Counter)
    caches: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    worst: dict[Cell, dict[tuple[str, str], Finding]] = field(default_factory=dict)
    """By cell, and by stage and tap: the worst finding of all calls that held."""

    def count(self, example: Example, judged: Judged) -> None:
        """Add a sequence that held. Its findings name the call itself, instead of its number."""
        cell, calls = example.cell, judged.calls
        self.sequences += 1
        self.calls += len(calls)
        self.shapes.update((cell.kind, call.batch, call.tokens) for call in calls)
        self.modes.update(call.mode for call in calls)
        self.caches.update(call.cache for call in calls if call.cache)
        self.events.update(call.event for call in calls if call.event)
        names = {step_name(number): str(call) for number, call in enumerate(example.calls, start=1)}
        self._note(
            cell,
            [
                *(Finding(step="", tap=tap, stage=stage, verdict=Verdict.BITWISE) for stage, tap in judged.equal),
                *(one.model_copy(update={"step": names.get(one.step, "")}) for one in judged.result.findings),
            ],
        )

    @property
    def results(self) -> list[CellResult]:
        """The worst findings as results of cells."""
        return [CellResult(cell=cell, findings=tuple(own.values()), seconds=0.0) for cell, own in self.worst.items()]

    @property
    def in_words(self) -> dict[str, str]:
        """What was covered, for a reader."""
        conditions = {**self.modes, **{f"cache {name}": n for name, n in self.caches.items()}, **self.events}
        return {
            "covered": f"{self.sequences} sequences of {self.calls} calls, {len(self.shapes)} shapes",
            "states": ", ".join(f"{name} {number}" for name, number in sorted(conditions.items())),
        }

    def add(self, other: Covered) -> None:
        """Add what another process has covered."""
        self.sequences += other.sequences
        self.calls += other.calls
        self.shapes |= other.shapes
        self.modes += other.modes
        self.caches += other.caches
        self.events += other.events
        for cell, findings in other.worst.items():
            self._note(cell, findings.values())

    def _note(self, cell: Cell, findings: Iterable[Finding]) -> None:
        worst = self.worst.setdefault(cell, {})
        for one in findings:
            key = one.stage, one.tap
            if key not in worst or _badness(one) > _badness(worst[key]):
                worst[key] = one


def _badness(finding: Finding) -> tuple[int, float]:
    return finding.verdict.severity, finding.r or 0.0


@dataclass
class Hunt:
    """A hunt in one process."""

    subjects: Subjects
    cells: Sequence[Cell]
    seed: int
    is_over: Callable[[], bool] = lambda: False
    """Whether another process has found something."""
    on_found: Callable[[], object] = lambda: None
    covered: Covered = field(default_factory=Covered)
    found: Example | None = None
    """The smallest sequence that is known to fail."""

    def run(self, seconds: float) -> None:
        """Hunt until the time is over, or a failure is found and shrunk.

        Raises:
            CgverifyError: something could not be run.
        """
        deadline = time.monotonic() + seconds
        makers = {cell: self._subject(cell).prepare(cell) for cell in self.cells}
        for example in examples(makers, self.seed):
            if time.monotonic() > deadline or self.is_over():
                return
            if self.fails(example):
                self.on_found()
                self._shrink(makers[example.cell], deadline + SHRINK_SECONDS)
                return

    def _shrink(self, maker: CallMaker, deadline: float) -> None:
        found = self.found
        assert found is not None

        def until_failure(calls: tuple[Call, ...]) -> tuple[Call, ...]:
            judged = self._judged(found.model_copy(update={"calls": calls}))
            return judged.until_failure if judged.fails else ()

        calls = shrink(found.calls, until_failure, maker.settled, lambda: time.monotonic() > deadline)
        self.found = found.model_copy(update={"calls": calls})

    def fails(self, example: Example) -> bool:
        """Return whether a sequence fails on a new instance, and keep it up to the call that does.

        Raises:
            CgverifyError: something could not be run.
        """
        judged = self._judged(example)
        if judged.fails:
            self.found = example.model_copy(update={"calls": judged.until_failure})
        else:
            self.covered.count(example, judged)
        return judged.fails

    def _judged(self, example: Example) -> Judged:
        judged = self._in_fork(example, Subject.judge)
        if judged.error:
            calls = "; ".join(map(str, example.calls))
            raise CgverifyError(f"{example.cell.component} in {example.cell.dtype}, calls {calls}: {judged.error}")
        return judged

    def explain(self, example: Example) -> CellResult:
        """Return the result of the sequence that failed, on a new instance, with all taps and a sentence.

        Raises:
            CgverifyError: the sequence does not fail again.
        """
        result = self._in_fork(example, Subject.explain).result
        if not result.verdict.fails:
            raise CgverifyError(
                f"{example.cell.component} in {example.cell.dtype} failed, and not when the same calls were repeated: "
                f"{'; '.join(map(str, example.calls))}. The bridge depends on more than its inputs, such as chance or "
                "time. Run counterexample.py in the run folder a few times."
            )
        return result

    def _in_fork(self, example: Example, how: Callable[[Subject, Cell, Sequence[Call]], Judged]) -> Judged:
        subject = self._subject(example.cell)
        return in_fork(lambda: how(subject, example.cell, example.calls), example.cell, example.calls)

    def _subject(self, cell: Cell) -> Subject:
        return self.subjects[weights_view(cell), cell.dtype]
