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
from cgverify.common.records import Cell, CellResult, Checkpoint, Prompt
from cgverify.observe.candidate import Candidate, find_candidate
from cgverify.plan.axes import Axes
from cgverify.plan.cases import CASE_KINDS, PROMPTED, WHOLE
from cgverify.plan.cells import cells
from cgverify.selftest.candidates import Fault, KnownCandidate
from cgverify.selftest.result import Outcome, SelfTestResult, result_of
from cgverify.selftest.visibility import explain_miss

MODEL = "codegen-nano"
LAYER = 1
"""Not the first layer, so that layers of a cache can be confused, nor the last, so that the next one has weights."""

PROMPT = "def f(x):"
"""Short, since no fault needs more."""

BACKWARD = "backward"
"""Faults of the forward are not run in this case: a gradient as a whole has no stage to blame."""


FOR_HIDDEN = ("shapes", "state", "data", "weights", "caches")
"""Cases that were made for hidden faults. Other faults are found without them, and are not run in them."""


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
        kinds = [kind for kind in known.kinds if any(kind in CASE_KINDS[case] for case in cases)]
        planned = cells(
            described(source),
            Axes(
                candidates=[known.bridge],
                dtypes=self.dtypes,
                devices=self.devices,
                cases=cases,
                layers=[LAYER],
                components=kinds[:1] if self.quick else kinds,
            ),
        )
        if isinstance(known, Fault):  # a part and the block around it show the same in the other cases
            planned = [cell for cell in planned if cell.kind == kinds[0] or cell.case == known.case]
        return planned

    def _cases(self, known: KnownCandidate) -> list[str]:
        if known.kinds == WHOLE:
            return ["model"]
        if self.quick:
            return [known.case] if isinstance(known, Fault) else ["default", "stress"]
        cases = [case for case in CASE_KINDS if case not in PROMPTED]
        if isinstance(known, Fault):
            left_out = {*FOR_HIDDEN, BACKWARD} - {known.case}
            cases = [case for case in cases if case not in left_out]
        return cases

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
                        result = replace(result, outcome=explain_miss(candidates[known.bridge], own, source))
                    yield result


def described(source: Source) -> Checkpoint:
    """Return the checkpoint with the prompt of the whole model's cells."""
    return describe_checkpoint(MODEL, "auto", source).model_copy(update={"prompt": prompt_of(source)})


def prompt_of(source: Source) -> Prompt:
    """Return the prompt of the whole model's cells."""
    return prompt_for(MODEL, source, PROMPT)


def exit_code(results: Sequence[SelfTestResult]) -> int:
    """Return 1 if a fault was missed or a variant raised a false alarm, else 0."""
    return 1 if any(result.outcome.fails for result in results) else 0
