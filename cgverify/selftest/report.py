"""The exam's mark sheet: as a DataFrame with a row per entry, dtype and device, and on the screen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import pandas as pd
from rich.box import SIMPLE
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from cgverify.selftest.answer import Answer, Outcome
from cgverify.selftest.entry import Entry, Fault

COLUMNS = [
    *("name", "sort", "subject", "bridge", "dtype", "device", "outcome", "blamed", "may_be_blamed", "rightly_blamed"),
    *("case", "step", "tap", "r", "message"),
]
RIGHT_BLAME = 0.95
"""The share of caught faults of which the right stage is to be blamed."""


def exam_frame(answers: Iterable[Answer]) -> pd.DataFrame:
    """One row per answer, columns `COLUMNS`, with no times: one exam is always the same bytes."""
    return pd.DataFrame([_row(answer) for answer in answers], columns=COLUMNS)


def _row(answer: Answer) -> dict[str, object]:
    entry, first = answer.entry, answer.first
    may_be_blamed = sorted(entry.stages) if isinstance(entry, Fault) else []
    return {
        "name": entry.name,
        "sort": "fault" if isinstance(entry, Fault) else "variant",
        "subject": entry.subject,
        "bridge": entry.bridge,
        "dtype": answer.dtype,
        "device": answer.device,
        "outcome": answer.outcome.value,
        "blamed": " ".join(answer.blamed),
        "may_be_blamed": " ".join(may_be_blamed),
        "rightly_blamed": {True: "yes", False: "no", None: ""}[answer.rightly_blamed],
        "case": answer.case,
        "step": first.step if first else "",
        "tap": first.tap if first else "",
        "r": first.r if first else None,
        "message": first.message if first else "",
    }


def marks_frame(answers: Sequence[Answer]) -> pd.DataFrame:
    """One row per dtype and device: how many of each outcome, and of how many caught faults the blame was right."""
    rows = []
    for (dtype, device), group in groupby(sorted(answers, key=_setting), key=_setting):
        own = list(group)
        row: dict[str, object] = {"dtype": dtype, "device": device}
        row |= {outcome.value: sum(answer.outcome is outcome for answer in own) for outcome in Outcome}
        row["rightly blamed"] = sum(answer.rightly_blamed is True for answer in own)
        rows.append(row)
    return pd.DataFrame(rows)


def _setting(answer: Answer) -> tuple[str, str]:
    return answer.dtype, answer.device


def show(console: Console, answers: Sequence[Answer]) -> None:
    """Print what went wrong first, then what was listed apart, then the marks."""
    for part in _parts(answers):
        console.print(part, soft_wrap=isinstance(part, Text))


def _parts(answers: Sequence[Answer]) -> list[RenderableType]:
    of = {outcome: [answer for answer in answers if answer.outcome is outcome] for outcome in Outcome}
    wrongly = [answer for answer in answers if answer.rightly_blamed is False]
    lines: list[RenderableType] = [Text(_sentence(answer), "red") for answer in of[Outcome.MISSED]]
    lines += [Text(_sentence(answer), "red") for answer in of[Outcome.FALSE_ALARM]]
    lines += [Text(_wrong_blame(answer), "yellow") for answer in wrongly]
    for apart in (Outcome.NO_BIT, Outcome.BELOW):
        lines += [Text(f"{apart.value} in {dtype}: {names}", "dim") for dtype, names in _by_dtype(of[apart])]
    return [*lines, _marks_table(answers), _verdict_line(answers, wrongly)]


def _sentence(answer: Answer) -> str:
    entry, setting = answer.entry, f"{answer.dtype} on {answer.device}"
    if answer.outcome is Outcome.MISSED:
        return f"missed {entry.name} in {setting}: {_what(entry)}"
    told = answer.first.message if answer.first else ""
    return f"false alarm {entry.name} in {setting}, case {answer.case}: {told}"


def _wrong_blame(answer: Answer) -> str:
    assert isinstance(answer.entry, Fault)
    return (
        f"wrong blame {answer.entry.name} in {answer.dtype} on {answer.device}: {', '.join(answer.blamed)} where it is "
        f"{' or '.join(sorted(answer.entry.stages))}"
    )


def _what(entry: Entry) -> str:
    return (entry.candidate.__doc__ or "").strip()


def _by_dtype(answers: Sequence[Answer]) -> list[tuple[str, str]]:
    grouped = groupby(sorted(answers, key=_setting), key=_setting)
    return [(f"{dtype} on {device}", _names(answer.entry for answer in own)) for (dtype, device), own in grouped]


def _names(entries: Iterable[Entry]) -> str:
    return ", ".join(entry.name for entry in entries)


def _marks_table(answers: Sequence[Answer]) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    marks = marks_frame(answers)
    for column in marks.columns:
        left = column in ("dtype", "device")
        table.add_column(
            column, justify="left" if left else "right", min_width=max(map(len, column.split())), no_wrap=left
        )
    for row in marks.itertuples(index=False):
        table.add_row(*(str(figure) for figure in row))
    return table


def _verdict_line(answers: Sequence[Answer], wrongly: Sequence[Answer]) -> Text:
    count = {outcome: sum(answer.outcome is outcome for answer in answers) for outcome in Outcome}
    caught = count[Outcome.CAUGHT]
    share = 1 - len(wrongly) / caught if caught else 1.0
    style = "bold" if share >= RIGHT_BLAME and not any(a.outcome.fails for a in answers) else "bold red"
    return Text(
        f"{caught} faults caught, {count[Outcome.MISSED]} missed, {count[Outcome.FALSE_ALARM]} false alarms in "
        f"{count[Outcome.HELD] + count[Outcome.FALSE_ALARM]} correct variants; right stage blamed in {share:.1%}",
        style,
    )
