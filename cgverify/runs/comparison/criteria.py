"""What makes a comparison a regression: the criteria of `--fail-on`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cgverify.common.errors import UnknownNameError, UsageError
from cgverify.runs.comparison.changes import Comparison

NAMES = ("worse", "diverged", "missing-cells", "r:2x")
DEFAULT = ("worse", "missing-cells")


@dataclass(frozen=True)
class Criterion:
    """`worse`, `diverged`, `missing-cells`, or `r` with the factor by which it must not grow."""

    name: str
    factor: float = math.inf

    def broken(self, comparison: Comparison) -> str | None:
        """One sentence on how the comparison breaks it; None if it does not."""
        match self.name:
            case "worse":
                return _counted(len(comparison.worse), "verdict got worse", "verdicts got worse")
            case "diverged":
                failed = sum(change.fails for change in comparison.worse)
                return _counted(failed, "tap fails that did not", "taps fail that did not")
            case "missing-cells":
                missing = len(comparison.vanished) + len(comparison.lost)
                return _counted(missing, "cell is no longer compared", "cells are no longer compared")
            case _:
                grown = len(comparison.grown(self.factor))
                by = f"by {self.factor:g} times or more"
                return _counted(grown, f"tap's r grew {by}", f"taps' r grew {by}")


def criteria(texts: Iterable[str]) -> list[Criterion]:
    """Criteria from their names; `r:2x` is an r that grew to twice or more.

    Raises:
        UsageError: a name that is not known, or a factor that is not above 1.
    """
    found = []
    for text in texts:
        name, colon, factor = text.partition(":")
        if name == "r" and colon:
            found.append(Criterion("r", _factor(factor)))
        elif text in NAMES:
            found.append(Criterion(text))
        else:
            raise UnknownNameError("fail-on", text, NAMES)
    if not found:
        raise UsageError(f"--fail-on names nothing: known are {', '.join(NAMES)}.")
    return found


def regressions(comparison: Comparison, asked: Sequence[Criterion]) -> list[str]:
    """One sentence per criterion that the comparison breaks."""
    return [sentence for criterion in asked if (sentence := criterion.broken(comparison)) is not None]


def _factor(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?x", text) or not float(text[:-1]) > 1:
        raise UsageError(f"--fail-on r:{text} has no factor above 1: write r:2x.")
    return float(text[:-1])


def _counted(number: int, one: str, many: str) -> str | None:
    return None if number == 0 else f"{number} {one if number == 1 else many}"
