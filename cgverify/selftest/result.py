"""What the verifier found in one candidate or reference of the self-test, in one dtype on one device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from cgverify.common.records import CellResult, Finding
from cgverify.selftest.candidates import Fault, KnownCandidate


class Outcome(StrEnum):
    """The outcome of a candidate or a reference. Faults that no cell can show are neither caught nor missed.

    A hidden fault is unseen if no case found it, and it is marked as unseen in that dtype. The mark is stale if a case
    did find it.

    A fault of a reference is refused before the run, or suspect. It is wrongly blamed if the refusal does not name what
    was changed, if a stage that was not changed is suspect, or if the bridge is blamed.
    """

    CAUGHT = "caught"
    MISSED = "missed"
    NO_BIT = "changes no bit"
    BELOW = "below resolution"
    UNSEEN = "unseen"
    STALE = "stale mark"
    HELD = "held"
    FALSE_ALARM = "false alarm"
    REFUSED = "refused"
    SUSPECT = "suspect"
    WRONGLY_BLAMED = "wrongly blamed"

    @property
    def fails(self) -> bool:
        return self in (Outcome.MISSED, Outcome.STALE, Outcome.FALSE_ALARM, Outcome.WRONGLY_BLAMED)


@dataclass(frozen=True)
class SelfTestResult:
    """One row of the self-test's report."""

    known: KnownCandidate
    dtype: str
    device: str
    outcome: Outcome
    blamed: tuple[str, ...] = ()
    """The first failed stage of each failed cell, without repetition."""
    case: str = ""
    """The first case with a failed finding."""
    failed_cases: tuple[str, ...] = ()
    """The cases with a failed finding, without repetition."""
    first: Finding | None = None
    """The first failed finding, or the finding with the greatest r if none failed."""
    by_plain: bool | None = None
    """Whether a plain run finds a hidden fault; None if that was not tried."""

    @property
    def rightly_blamed(self) -> bool | None:
        """Whether all blamed stages are among the fault's own; None unless the fault was caught."""
        if self.outcome is not Outcome.CAUGHT or not isinstance(self.known, Fault):
            return None
        return all(self.known.allows(stage) for stage in self.blamed)


def result_of(known: KnownCandidate, dtype: str, device: str, cells: Sequence[CellResult]) -> SelfTestResult:
    """Return the result of a candidate from its cells in plan order. A fault without a failed cell is `missed`."""
    failed = [(cell, [f for f in cell.findings if f.verdict.fails]) for cell in cells]
    failed = [(cell, findings) for cell, findings in failed if findings]
    is_fault = isinstance(known, Fault)
    if not failed:
        measured = [f for cell in cells for f in cell.findings if f.r is not None]
        largest = max(measured, key=lambda f: f.r or 0.0, default=None)
        return SelfTestResult(known, dtype, device, Outcome.MISSED if is_fault else Outcome.HELD, first=largest)
    blamed = tuple(dict.fromkeys(findings[0].stage for _, findings in failed))
    cell, findings = failed[0]
    outcome = Outcome.CAUGHT if is_fault else Outcome.FALSE_ALARM
    cases = tuple(dict.fromkeys(cell.cell.case for cell, _ in failed))
    return SelfTestResult(known, dtype, device, outcome, blamed, cell.cell.case, cases, findings[0])
