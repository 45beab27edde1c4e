"""A run as annotations of a GitHub workflow: one `::error` per fault, the worst ten, and a notice of the whole.

GitHub shows no more than ten errors of a step. A line that starts with `::` is a command there, so what a message or a
name holds is escaped as the runner unescapes it:
https://github.com/actions/toolkit/blob/main/packages/core/src/command.ts
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from cgverify.common.printable import printable
from cgverify.common.records import CellResult, Run
from cgverify.report.outcome import Failure, failures
from cgverify.report.table import verdict_line

SHOWN = 10


def render(run: Run, results: Sequence[CellResult]) -> str:
    """The report as text."""
    worst = sorted(failures(results), key=_badness, reverse=True)
    told = [
        (f"{failure.cell.component}: {failure.finding.verdict.value}", f"{failure.sentence}\n{failure.command(run)}")
        for failure in worst
    ]
    return annotate(told, f"cgverify {run.model}", verdict_line(results))


def annotate(errors: Iterable[tuple[str, str]], title: str, notice: str) -> str:
    """Errors as (title, message), the worst first, and a notice that stands there in any case."""
    errors = list(errors)
    if len(errors) > SHOWN:
        notice += f"; the worst {SHOWN} of {len(errors)} faults are shown"
    lines = [_command("error", *error) for error in errors[:SHOWN]]
    return "\n".join([*lines, _command("notice", title, notice)]) + "\n"


def _command(kind: str, title: str, message: str) -> str:
    return f"::{kind} title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _badness(failure: Failure) -> tuple[bool, float]:
    """Failures before errors, and what has no r at all (it raised, or is missing) before what is merely far off."""
    finding = failure.finding
    return finding.verdict.fails, math.inf if finding.r is None else finding.r
