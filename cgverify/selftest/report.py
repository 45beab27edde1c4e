"""The report of the self-test: a DataFrame with a row for each result, and sections for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import pandas as pd

from cgverify.report.sections import Section
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


def sections(results: Sequence[SelfTestResult]) -> Iterator[Section]:
    """Yield what failed, then the faults that nothing can show, then the counts."""
    of = {outcome: [result for result in results if result.outcome is outcome] for outcome in Outcome}
    for result in of[Outcome.MISSED]:
        yield Section(f"missed {_where(result)}: {result.known.sentence}", tone="bad")
    for result in of[Outcome.FALSE_ALARM]:
        message = result.first.message if result.first else ""
        yield Section(f"false alarm {_where(result)}, case {result.case}: {message}", tone="bad")
    for result in results:
        if result.rightly_blamed is False and isinstance(result.known, Fault):
            stages = " or ".join(sorted(result.known.stages))
            title = f"wrong blame {_where(result)}: {', '.join(result.blamed)} instead of {stages}"
            yield Section(title, tone="warning")
    for outcome in (Outcome.NO_BIT, Outcome.BELOW):
        for (dtype, device), group in _by_dtype(of[outcome]):
            names = ", ".join(result.known.name for result in group)
            yield Section(f"{outcome.value} in {dtype} on {device}: {names}", tone="aside")
    columns = ["dtype", "device", *(outcome.value for outcome in Outcome), "rightly blamed"]
    yield Section("", columns=columns, rows=[_counts(setting, group) for setting, group in _by_dtype(results)])
    yield _summary(results)


def _where(result: SelfTestResult) -> str:
    return f"{result.known.name} in {result.dtype} on {result.device}"


def _by_dtype(results: Iterable[SelfTestResult]) -> list[tuple[tuple[str, str], list[SelfTestResult]]]:
    """Group results by dtype and device."""

    def key(result: SelfTestResult) -> tuple[str, str]:
        return result.dtype, result.device

    return [(each, list(group)) for each, group in groupby(sorted(results, key=key), key=key)]


def _counts(setting: tuple[str, str], results: Sequence[SelfTestResult]) -> list[str]:
    """Count the outcomes in a dtype on a device, and the faults with the right stage blamed."""
    counts = [sum(result.outcome is outcome for result in results) for outcome in Outcome]
    rightly = sum(result.rightly_blamed is True for result in results)
    return [*setting, *map(str, (*counts, rightly))]


def _summary(results: Sequence[SelfTestResult]) -> Section:
    count = {outcome: sum(result.outcome is outcome for result in results) for outcome in Outcome}
    caught = count[Outcome.CAUGHT]
    share = sum(result.rightly_blamed is True for result in results) / caught if caught else 1.0
    passed = share >= REQUIRED_SHARE and not any(result.outcome.fails for result in results)
    return Section(
        f"{caught} faults caught, {count[Outcome.MISSED]} missed, {count[Outcome.FALSE_ALARM]} false alarms in "
        f"{count[Outcome.HELD] + count[Outcome.FALSE_ALARM]} correct variants; right stage blamed in {share:.1%}",
        tone="plain" if passed else "bad",
    )
