"""Plan the self-test, and turn the results of its cells into one result for each candidate.

Each candidate is verified as a user would verify it: `--bridge` finds it by name, `cgverify.plan.cells` plans its
cells, and a `CheckpointVerifier` runs them. All candidates are one run, so that they share each view of the weights
and each reference with the values of its oracle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from cgverify.checkpoint.lookup import describe_checkpoint
from cgverify.checkpoint.prompt import prompt_for
from cgverify.checkpoint.source import Source
from cgverify.common.records import Cell, CellResult, Prompt
from cgverify.observe.candidate import Candidate, find_candidate
from cgverify.plan.axes import Axes
from cgverify.plan.cases import CASE_KINDS, PROMPTED
from cgverify.plan.cells import cells
from cgverify.selftest.candidates import Fault, HiddenFault, KnownCandidate
from cgverify.selftest.result import Outcome, SelfTestResult, result_of
from cgverify.selftest.visibility import explain_miss

MODEL = "codegen-nano"
LAYER = 1
"""Not the first layer, so that layers of a cache can be confused, nor the last, so that the next one has weights."""

PROMPT = "def f(x):"
"""Short, since no fault needs more."""

BACKWARD = "backward"
"""Faults of the forward are not run in this case: a gradient as a whole has no stage to blame."""


@dataclass(frozen=True)
class SelfTest:
    """The candidates to verify, each in the given dtypes on the given devices."""

    known: tuple[KnownCandidate, ...]
    dtypes: tuple[str, ...]
    devices: tuple[str, ...]
    quick: bool = False
    """Run each candidate only in the first of its kinds, and a fault only in the first case that can show it."""

    def candidates(self) -> dict[str, Candidate]:
        """Return the candidates by their name in cells."""
        return {known.bridge: find_candidate(known.bridge) for known in self.known}

    def plan(self, source: Source) -> list[Cell]:
        """Return the cells of all candidates."""
        return [cell for known in self.known for cell in self.cells_of(known, source)]

    def cells_of(self, known: KnownCandidate, source: Source) -> list[Cell]:
        """Return the cells of one candidate, in plan order."""
        cases = self._cases(known)
        layer = known.layer if isinstance(known, HiddenFault) and known.layer is not None else LAYER
        kinds = [kind for kind in known.kinds if any(kind in CASE_KINDS[case] for case in cases)]
        return cells(
            describe_checkpoint(MODEL, "auto", source).model_copy(update={"prompt": prompt_of(source)}),
            Axes(
                candidates=[known.bridge],
                dtypes=self.dtypes,
                devices=self.devices,
                cases=cases,
                layers=[layer],
                components=kinds[:1] if self.quick else kinds,
            ),
        )

    def _cases(self, known: KnownCandidate) -> list[str]:
        if isinstance(known, HiddenFault):
            return [case for case in CASE_KINDS if case in (known.cases if self.quick else _cases_of(known))]
        if self.quick:
            return [known.case] if isinstance(known, Fault) else ["default", "stress"]
        without_backward = isinstance(known, Fault) and known.case != BACKWARD
        return [case for case in CASE_KINDS if case not in PROMPTED and not (without_backward and case == BACKWARD)]

    def results(self, finished: Iterable[CellResult], source: Source) -> Iterator[SelfTestResult]:
        """Return a result for each candidate, dtype and device, in the order of the candidates.

        Args:
            finished: the results of all planned cells, in any order.
        """
        by_cell = {result.cell.id: result for result in finished}
        candidates = self.candidates()
        for known in self.known:
            plan = self.cells_of(known, source)
            for dtype in self.dtypes:
                for device in self.devices:
                    own = [cell for cell in plan if (cell.dtype, cell.device) == (dtype, device)]
                    result = result_of(known, dtype, device, [by_cell[cell.id] for cell in own if cell.id in by_cell])
                    if result.outcome is Outcome.MISSED:
                        result = replace(result, outcome=_explained(known, candidates[known.bridge], own, source))
                    yield result


def prompt_of(source: Source) -> Prompt:
    """Return the prompt of the whole model's cells."""
    return prompt_for(MODEL, source, PROMPT)


def _explained(known: KnownCandidate, candidate: Candidate, own: Sequence[Cell], source: Source) -> Outcome:
    """Return why a fault was not found. A hidden fault changes something, so cells where it does not have missed it."""
    own = [cell for cell in own if not cell.prompt]
    outcome = explain_miss(candidate, own, source) if own else Outcome.MISSED
    return Outcome.MISSED if isinstance(known, HiddenFault) and outcome is Outcome.NO_BIT else outcome


def _cases_of(known: HiddenFault) -> list[str]:
    """Return all cases in which a hidden fault may be seen: those of a prompt only if it is in the whole model."""
    return [case for case in CASE_KINDS if case not in PROMPTED or (case == "model" and "model" in known.kinds)]


def exit_code(results: Sequence[SelfTestResult]) -> int:
    """Return 1 if a fault was missed or a variant raised a false alarm, else 0."""
    return 1 if any(result.outcome.fails for result in results) else 0
