"""Plan the exam, and mark what the verifier made of it.

Every entry is verified as a user would verify it: it is found by its `--bridge` name, its cells are those of
`cgverify.plan.cells`, and `cgverify.runs.execute` runs them. Cells of all entries go in one run, so that one view of
the weights and one reference with its oracle's answers serve them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from cgverify.checkpoint.source import Source
from cgverify.common.records import Cell, CellResult
from cgverify.observe import candidate
from cgverify.observe.candidate import Candidate
from cgverify.plan.cells import CASE_KINDS, PROMPTED, Axes, CheckpointShape, cells
from cgverify.selftest.answer import Answer, Outcome, answer
from cgverify.selftest.entry import Entry, Fault
from cgverify.selftest.resolution import explain

MODEL = "codegen-nano"
LAYER = 1
"""Neither the first, so that a cache's layers can be mixed up, nor the last, so that there is a next one's weights."""

BACKWARD = "backward"
"""A fault of the forward is not asked for here: a whole gradient has no stage, by which to mark the blame."""


@dataclass(frozen=True)
class Exam:
    """Entries, and in which dtypes and on which devices they are sat."""

    entries: tuple[Entry, ...]
    dtypes: tuple[str, ...]
    devices: tuple[str, ...]
    quick: bool = False
    """Each entry only in the first of its kinds, and a fault only in the first case that can show it."""

    def candidates(self) -> dict[str, Candidate]:
        """By the name that cells have for them."""
        return {entry.bridge: candidate.find_candidate(entry.bridge) for entry in self.entries}

    def plan(self, source: Source) -> list[Cell]:
        """Every cell of the exam."""
        return [cell for entry in self.entries for cell in self.cells_of(entry, source)]

    def cells_of(self, entry: Entry, source: Source) -> list[Cell]:
        """An entry's cells, in plan order."""
        cases = self._cases(entry)
        kinds = [kind for kind in entry.kinds if any(kind in CASE_KINDS[case] for case in cases)]
        config = source.config
        subject = CheckpointShape(MODEL, source.digest, config.n_layer, config.rotary_dim, config.n_positions)
        return cells(
            subject,
            Axes(
                candidates=[entry.bridge],
                dtypes=self.dtypes,
                devices=self.devices,
                cases=cases,
                layers=[LAYER],
                components=kinds[:1] if self.quick else kinds,
            ),
        )

    def _cases(self, entry: Entry) -> list[str]:
        if self.quick:
            return [entry.case] if isinstance(entry, Fault) else ["default", "stress"]
        if isinstance(entry, Fault) and entry.case != BACKWARD:
            return [case for case in CASE_KINDS if case not in (BACKWARD, *PROMPTED)]
        return [case for case in CASE_KINDS if case not in PROMPTED]


def mark(exam: Exam, results: Iterable[CellResult], source: Source) -> Iterator[Answer]:
    """An answer for each entry, dtype and device, in the table's order.

    Args:
        results: of all cells of the exam's plan, in any order.
    """
    finished = {result.cell.id: result for result in results}
    candidates = exam.candidates()
    for entry in exam.entries:
        plan = exam.cells_of(entry, source)
        for dtype in exam.dtypes:
            for device in exam.devices:
                own = [cell for cell in plan if (cell.dtype, cell.device) == (dtype, device)]
                given = answer(entry, dtype, device, [finished[cell.id] for cell in own if cell.id in finished])
                if given.outcome is Outcome.MISSED:
                    given = replace(given, outcome=explain(candidates[entry.bridge], own, source))
                yield given


def exit_code(answers: Sequence[Answer]) -> int:
    """1 where a fault was missed or a variant flagged, 0 otherwise."""
    return 1 if any(answer.outcome.fails for answer in answers) else 0
