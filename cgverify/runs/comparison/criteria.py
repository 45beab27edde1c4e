"""The criteria of `--fail-on`, which decide whether a comparison is a regression."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cgverify.common.errors import UnknownNameError, UsageError
from cgverify.common.records import Verdict
from cgverify.runs.comparison.changes import Comparison

NAMES = ("worse", "diverged", "suspect", "missing-cells", "r:2x")


@dataclass(frozen=True)
class Criterion:
    """`worse`, `diverged`, `suspect`, `missing-cells`, or `r` with the factor from which its growth is a regression."""

    name: str
    factor: float = math.inf

    def broken(self, comparison: Comparison) -> str | None:
        """Return one sentence on how the comparison breaks the criterion; None if it does not."""
        match self.name:
            case "worse":
                number, one, many = len(comparison.worse), "verdict got worse", "verdicts got worse"
            case "diverged":
                number = sum(change.fails for change in comparison.worse)
                one, many = "tap fails that did not", "taps fail that did not"
            case "suspect":
                after = [change.after for change in comparison.worse if change.after is not None]
                number = sum(finding.verdict is Verdict.SUSPECT for finding in after)
                one, many = "tap of the reference is beyond its bound", "taps of the reference are beyond their bounds"
            case "missing-cells":
                number = len(comparison.vanished) + len(comparison.lost)
                one, many = "cell is no longer compared", "cells are no longer compared"
            case _:
                number, by = len(comparison.grown(self.factor)), f"grew by {self.factor:g} times or more"
                one, many = f"tap's r {by}", f"taps' r {by}"
        return None if number == 0 else f"{number} {one if number == 1 else many}"


def criteria(texts: Iterable[str]) -> list[Criterion]:
    """Return criteria from their names. `r:2x` is broken by an r that is twice as great or greater.

    Raises:
        UsageError: a name is unknown, a factor is not above 1, or no name is given.
    """
    found = []
    for text in texts:
        name, colon, factor = text.partition(":")
        if name == "r" and colon:
            if not re.fullmatch(r"\d+(\.\d+)?x", factor) or not float(factor[:-1]) > 1:
                raise UsageError(f"--fail-on {text} has no factor above 1: write r:2x.")
            found.append(Criterion("r", float(factor[:-1])))
        elif text in NAMES:
            found.append(Criterion(text))
        else:
            raise UnknownNameError("fail-on", text, NAMES)
    if not found:
        raise UsageError(f"--fail-on names nothing: known are {', '.join(NAMES)}.")
    return found


def regressions(comparison: Comparison, asked: Sequence[Criterion]) -> list[str]:
    """Return one sentence for each criterion that the comparison breaks."""
    return [sentence for criterion in asked if (sentence := criterion.broken(comparison)) is not None]
