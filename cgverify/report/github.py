"""Annotations of a GitHub workflow: an `::error` for each of the ten worst faults, and a `::notice` with the counts.

GitHub shows at most ten errors of a step. A line that starts with `::` is a command to the runner, so messages and
names are escaped as the runner unescapes them:
https://github.com/actions/toolkit/blob/main/packages/core/src/command.ts
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cgverify.common.printable import printable
from cgverify.common.records import CellResult, Run
from cgverify.report.comparison import comparison_line
from cgverify.report.folds import folded, split_consequences, verdict_names
from cgverify.report.outcome import Failure, failures, verdict_line
from cgverify.runs.comparison.changes import Comparison

MOST_ERRORS = 10


def run_annotations(run: Run, results: Sequence[CellResult]) -> str:
    errors = [
        (f"{failure.cell.component}: {failure.finding.verdict.value}", f"{failure.sentence}\n{failure.command(run)}")
        for failure in sorted(failures(results), key=_badness, reverse=True)
    ]
    return _annotations(errors, f"cgverify {run.model}", verdict_line(results))


def _badness(failure: Failure) -> tuple[bool, float]:
    """Order failures after errors, and findings without r, which raised or are missing, after those with a large r."""
    finding = failure.finding
    return finding.verdict.fails, math.inf if finding.r is None else finding.r


def comparison_annotations(comparison: Comparison, regressions: Sequence[str]) -> str:
    """Return errors if there is a regression, and in any case a notice, which names the versions that differ."""
    errors = []
    if regressions:
        errors.append(("regression", "\n".join(regressions)))
        errors += [
            (f"{fold.change.cell.component}: {' → '.join(verdict_names(fold.change))}", fold.sentence)
            for fold in folded(split_consequences(comparison.worse)[0])
        ]
    versions = [
        f"{each.name} {each.before} → {each.after}" for each in comparison.differences if each.part == "versions"
    ]
    notice = ", ".join([comparison_line(comparison, regressions), *versions])
    return _annotations(errors, f"cgverify {comparison.run.model}", notice)


def _annotations(errors: Sequence[tuple[str, str]], title: str, notice: str) -> str:
    """Return errors, each a title and a message, the worst first, and a notice."""
    if len(errors) > MOST_ERRORS:
        notice += f"; the worst {MOST_ERRORS} of {len(errors)} faults are shown"
    lines = [_command("error", *error) for error in errors[:MOST_ERRORS]]
    return "\n".join([*lines, _command("notice", title, notice)]) + "\n"


def _command(kind: str, title: str, message: str) -> str:
    escaped_title = _escaped(title).replace(":", "%3A").replace(",", "%2C")
    return f"::{kind} title={escaped_title}::{_escaped(message)}"


def _escaped(text: str) -> str:
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
