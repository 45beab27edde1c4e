"""The report of the self-test: a DataFrame with a row for each result, and a page for the screen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import pandas as pd
from rich.box import SIMPLE
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from cgverify.selftest.candidates import Fault
from cgverify.selftest.result import Outcome, SelfTestResult

COLUMNS = [
    *("name", "sort", "subject", "bridge", "dtype", "device", "outcome", "blamed", "may_be_blamed", "rightly_blamed"),
    *("case", "step", "tap", "r", "message"),
]
REQUIRED_SHARE = 0.95
"""The share of caught faults that must have the right stage blamed."""


def results_frame(results: Iterable[SelfTestResult]) -> pd.DataFrame:
    """Return one row for each result, columns `COLUMNS`. There are no times, so equal results have equal bytes."""
    return pd.DataFrame([_row(result) for result in results], columns=COLUMNS)


def _row(result: SelfTestResult) -> dict[str, object]:
    known, first = result.known, result.first
    return {
        "name": known.name,
        "sort": "fault" if isinstance(known, Fault) else "variant",
        "subject": known.subject,
        "bridge": known.bridge,
        "dtype": result.dtype,
        "device": result.device,
        "outcome": result.outcome.value,
        "blamed": " ".join(result.blamed),
        "may_be_blamed": " ".join(sorted(known.stages)) if isinstance(known, Fault) else "",
        "rightly_blamed": {True: "yes", False: "no", None: ""}[result.rightly_blamed],
        "case": result.case,
        "step": first.step if first else "",
        "tap": first.tap if first else "",
        "r": first.r if first else None,
        "message": first.message if first else "",
    }


def _by_dtype(results: Iterable[SelfTestResult]) -> list[tuple[tuple[str, str], list[SelfTestResult]]]:
    """Group results by dtype and device."""

    def key(result: SelfTestResult) -> tuple[str, str]:
        return result.dtype, result.device

    return [(each, list(group)) for each, group in groupby(sorted(results, key=key), key=key)]


def show(console: Console, results: Sequence[SelfTestResult]) -> None:
    """Print what failed, then the faults that nothing can show, then the counts."""
    for part in _parts(results):
        console.print(part, soft_wrap=isinstance(part, Text))


def _parts(results: Sequence[SelfTestResult]) -> list[RenderableType]:
    of = {outcome: [result for result in results if result.outcome is outcome] for outcome in Outcome}
    parts: list[RenderableType] = [
        *(Text(f"missed {_where(result)}: {result.known.sentence}", "red") for result in of[Outcome.MISSED]),
        *(
            Text(
                f"false alarm {_where(result)}, case {result.case}: {result.first.message if result.first else ''}",
                "red",
            )
            for result in of[Outcome.FALSE_ALARM]
        ),
    ]
    for result in results:
        if result.rightly_blamed is False and isinstance(result.known, Fault):
            stages = " or ".join(sorted(result.known.stages))
            parts.append(
                Text(f"wrong blame {_where(result)}: {', '.join(result.blamed)} instead of {stages}", "yellow")
            )
    for outcome in (Outcome.NO_BIT, Outcome.BELOW):
        for (dtype, device), group in _by_dtype(of[outcome]):
            names = ", ".join(result.known.name for result in group)
            parts.append(Text(f"{outcome.value} in {dtype} on {device}: {names}", "dim"))
    return [*parts, _counts(results), _summary(results)]


def _where(result: SelfTestResult) -> str:
    return f"{result.known.name} in {result.dtype} on {result.device}"


def _counts(results: Sequence[SelfTestResult]) -> Table:
    """Count the outcomes in each dtype on each device, and the faults with the right stage blamed."""
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for column in ("dtype", "device"):
        table.add_column(column, no_wrap=True)
    for column in (*(outcome.value for outcome in Outcome), "rightly blamed"):
        table.add_column(column, justify="right", min_width=max(map(len, column.split())))
    for setting, group in _by_dtype(results):
        counts = [sum(result.outcome is outcome for result in group) for outcome in Outcome]
        rightly = sum(result.rightly_blamed is True for result in group)
        table.add_row(*setting, *map(str, (*counts, rightly)))
    return table


def _summary(results: Sequence[SelfTestResult]) -> Text:
    count = {outcome: sum(result.outcome is outcome for result in results) for outcome in Outcome}
    caught = count[Outcome.CAUGHT]
    share = sum(result.rightly_blamed is True for result in results) / caught if caught else 1.0
    passed = share >= REQUIRED_SHARE and not any(result.outcome.fails for result in results)
    return Text(
        f"{caught} faults caught, {count[Outcome.MISSED]} missed, {count[Outcome.FALSE_ALARM]} false alarms in "
        f"{count[Outcome.HELD] + count[Outcome.FALSE_ALARM]} correct variants; right stage blamed in {share:.1%}",
        "bold" if passed else "bold red",
    )
