"""What the verifier made of one entry of the exam in one dtype on one device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from cgverify.common.records import CellResult, Finding
from cgverify.selftest.entry import Entry, Fault


class Outcome(StrEnum):
    """How an entry came out. Faults that nothing can show are neither caught nor missed."""

    CAUGHT = "caught"
    MISSED = "missed"
    NO_BIT = "changes no bit"
    BELOW = "below resolution"
    HELD = "held"
    FALSE_ALARM = "false alarm"

    @property
    def fails(self) -> bool:
        return self in (Outcome.MISSED, Outcome.FALSE_ALARM)


@dataclass(frozen=True)
class Answer:
    """One line of the mark sheet."""

    entry: Entry
    dtype: str
    device: str
    outcome: Outcome
    blamed: tuple[str, ...] = ()
    """The first stage that failed in each cell that failed, each once."""
    case: str = ""
    """The first case that showed it."""
    first: Finding | None = None
    """The first finding that failed; of a variant that held, the one with the greatest r."""

    @property
    def rightly_blamed(self) -> bool | None:
        """Whether every stage that was blamed is one of the entry's; None where nothing was rightly caught."""
        if self.outcome is not Outcome.CAUGHT or not isinstance(self.entry, Fault):
            return None
        return all(self.entry.may_be(stage) for stage in self.blamed)


def answer(entry: Entry, dtype: str, device: str, results: Sequence[CellResult]) -> Answer:
    """The line of an entry, from its cells in plan order. A fault that none of them shows is `missed` so far."""
    failed = [(result, [f for f in result.findings if f.verdict.fails]) for result in results]
    failed = [(result, findings) for result, findings in failed if findings]
    is_fault = isinstance(entry, Fault)
    if not failed:
        judged = [f for result in results for f in result.findings if f.r is not None]
        largest = max(judged, key=lambda f: f.r or 0.0, default=None)
        return Answer(entry, dtype, device, Outcome.MISSED if is_fault else Outcome.HELD, first=largest)
    blamed = tuple(dict.fromkeys(findings[0].stage for _, findings in failed))
    result, findings = failed[0]
    outcome = Outcome.CAUGHT if is_fault else Outcome.FALSE_ALARM
    return Answer(entry, dtype, device, outcome, blamed, result.cell.case, findings[0])
