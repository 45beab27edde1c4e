"""A run beside its baseline on the page: the very sections of `cgverify compare`, under a line of counts."""

from __future__ import annotations

from dataclasses import dataclass

from cgverify.report.comparison import GROWTH_TOLD, sections
from cgverify.report.sections import Section, counted
from cgverify.runs.comparison.changes import Comparison


@dataclass(frozen=True)
class Count:
    name: str
    number: int
    bad: bool = False
    """Whether a number above zero is bad news."""


@dataclass(frozen=True)
class Changes:
    created: str
    """When the baseline was made."""
    outcome: str
    """For the head of the page."""
    counts: tuple[Count, ...]
    sections: tuple[Section, ...]


def changes(comparison: Comparison) -> Changes:
    counts = (
        Count("taps worse", len(comparison.worse), bad=True),
        Count("taps better", len(comparison.better)),
        Count(f"r grew {GROWTH_TOLD:g}× or more", len(comparison.grown(GROWTH_TOLD))),
        Count("hooks stopped firing", len(comparison.stopped), bad=True),
        Count("cells no longer compared", len(comparison.lost), bad=True),
        Count("cells vanished", len(comparison.vanished), bad=True),
        Count("cells appeared", len(comparison.appeared)),
        Count("versions and flags", len(comparison.differences)),
    )
    worse = counted(len(comparison.worse), "tap")
    return Changes(
        created=comparison.baseline.created,
        outcome=f"{worse} worse than the baseline" if any(one.number for one in counts) else "nothing changed",
        counts=counts,
        sections=tuple(sections(comparison)),
    )
