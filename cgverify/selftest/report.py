"""The report of the self-test: a DataFrame with a row for each result, and sections for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import pandas as pd

from cgverify.report.sections import Section
from cgverify.selftest.candidates import Fault, HiddenFault, KnownCandidate, KnownReference, ReferenceFault
from cgverify.selftest.result import Outcome, SelfTestResult

COLUMNS = [
    *("name", "sort", "subject", "bridge", "dtype", "device", "outcome", "blamed", "may_be_blamed", "rightly_blamed"),
    *("case", "step", "tap", "r", "message"),
]
REQUIRED_SHARE = 0.95
"""The share of caught faults that must have the right stage blamed."""
OF_CANDIDATES = ("caught", "missed", "unseen", "changes no bit", "below resolution", "held", "false alarm")
_OF_HIDDEN = (Outcome.CAUGHT, Outcome.MISSED, Outcome.UNSEEN, Outcome.BELOW)
OF_REFERENCES = ("refused", "suspect", "missed", "wrongly blamed", "held", "false alarm")


def results_frame(results: Iterable[SelfTestResult]) -> pd.DataFrame:
    """Return one row for each result, columns `COLUMNS`. There are no times, so equal results have equal bytes."""
    return pd.DataFrame([_row(result) for result in results], columns=COLUMNS)


def _row(result: SelfTestResult) -> dict[str, object]:
    known, first = result.known, result.first
    return {
        "name": known.name,
        "sort": _sort(known),
        "subject": known.subject,
        "bridge": known.bridge,
        "dtype": result.dtype,
        "device": result.device,
        "outcome": result.outcome.value,
        "blamed": " ".join(result.blamed),
        "may_be_blamed": " ".join(sorted(known.stages)) if isinstance(known, Fault | ReferenceFault) else "",
        "rightly_blamed": {True: "yes", False: "no", None: ""}[result.rightly_blamed],
        "case": result.case,
        "step": first.step if first else "",
        "tap": first.tap if first else "",
        "r": first.r if first else None,
        "message": first.message if first else "",
    }


def _sort(known: KnownCandidate) -> str:
    if isinstance(known, KnownReference):
        return "reference fault" if isinstance(known, ReferenceFault) else "reference variant"
    return "fault" if isinstance(known, Fault) else "variant"


def sections(results: Sequence[SelfTestResult]) -> Iterator[Section]:
    """Yield what failed, then the faults that nothing can show, then the counts."""
    of = {outcome: [result for result in results if result.outcome is outcome] for outcome in Outcome}
    for result in of[Outcome.MISSED]:
        yield Section(f"missed {_where(result)}: {result.known.sentence}", tone="bad")
    for result in of[Outcome.STALE]:
        cases = " and ".join(result.failed_cases)
        yield Section(
            f"stale mark {_where(result)}: {cases} found it. Remove {result.dtype} from its row in "
            "cgverify/selftest/seeded/unseen.py.",
            tone="bad",
        )
    for outcome in (Outcome.FALSE_ALARM, Outcome.WRONGLY_BLAMED):
        for result in of[outcome]:
            message = result.first.message if result.first else ""
            case = f", case {result.case}" if result.case else ""
            yield Section(f"{outcome.value} {_where(result)}{case}: {message}", tone="bad")
    for result in results:
        if result.rightly_blamed is False and isinstance(result.known, Fault):
            stages = " or ".join(sorted(result.known.stages))
            title = f"wrong blame {_where(result)}: {', '.join(result.blamed)} instead of {stages}"
            yield Section(title, tone="warning")
    for result in of[Outcome.UNSEEN]:
        if isinstance(result.known, HiddenFault) and result.known.unseen is not None:
            reason = result.known.unseen.reason
            yield Section(f"unseen {_where(result)}: {result.known.sentence} {reason}", tone="aside")
    for outcome in (Outcome.NO_BIT, Outcome.BELOW):
        for (dtype, device), group in _by_dtype(of[outcome]):
            names = ", ".join(result.known.name for result in group)
            yield Section(f"{outcome.value} in {dtype} on {device}: {names}", tone="aside")
    candidates = [result for result in results if not isinstance(result.known, KnownReference)]
    hidden = [result for result in results if isinstance(result.known, HiddenFault)]
    if hidden:
        yield _by_subject(hidden)
    references = [result for result in results if isinstance(result.known, KnownReference)]
    if candidates:
        rows = [[*_counts(*group, OF_CANDIDATES), _rightly_blamed(group[1])] for group in _by_dtype(candidates)]
        yield Section("", columns=["dtype", "device", *OF_CANDIDATES, "rightly blamed"], rows=rows)
    if references:
        rows = [_counts(*group, OF_REFERENCES) for group in _by_dtype(references)]
        yield Section("references", columns=["dtype", "device", *OF_REFERENCES], rows=rows)
        yield _summary_of_references(references)
    yield _summary(candidates)


def _where(result: SelfTestResult) -> str:
    return f"{result.known.name} in {result.dtype} on {result.device}"


def _by_dtype(results: Iterable[SelfTestResult]) -> list[tuple[tuple[str, str], list[SelfTestResult]]]:
    """Group results by dtype and device."""

    def key(result: SelfTestResult) -> tuple[str, str]:
        return result.dtype, result.device

    return [(each, list(group)) for each, group in groupby(sorted(results, key=key), key=key)]


def _by_subject(results: Sequence[SelfTestResult]) -> Section:
    """Count the hidden faults by what shows them. A quick run does not try which of them a plain run finds."""
    subjects = dict.fromkeys(result.known.subject for result in results)
    rows = []
    for (dtype, device), group in _by_dtype(results):
        for subject in subjects:
            own = [result for result in group if result.known.subject == subject]
            plain = sum(result.by_plain or False for result in own)
            counts = [sum(result.outcome is outcome for result in own) for outcome in _OF_HIDDEN]
            tried = any(result.by_plain is not None for result in own)
            rows.append([dtype, device, subject, *map(str, (len(own), plain if tried else "", *counts))])
    columns = ["dtype", "device", "hidden faults", "number", "by a plain run", *(each.value for each in _OF_HIDDEN)]
    return Section("hidden faults, by what shows them", columns=columns, rows=rows)


def _counts(setting: tuple[str, str], results: Sequence[SelfTestResult], outcomes: Sequence[str]) -> list[str]:
    """Count the outcomes in a dtype on a device."""
    return [*setting, *(str(sum(result.outcome == outcome for result in results)) for outcome in outcomes)]


def _rightly_blamed(results: Sequence[SelfTestResult]) -> str:
    return str(sum(result.rightly_blamed is True for result in results))


def _summary_of_references(results: Sequence[SelfTestResult]) -> Section:
    count = {outcome: sum(result.outcome is outcome for result in results) for outcome in Outcome}
    faults = sum(isinstance(result.known, ReferenceFault) for result in results)
    return Section(
        f"{faults} faults of the reference: {count[Outcome.REFUSED]} refused, {count[Outcome.SUSPECT]} suspect, "
        f"{count[Outcome.MISSED]} passed, {count[Outcome.WRONGLY_BLAMED]} wrongly blamed; "
        f"{count[Outcome.FALSE_ALARM]} false alarms in {len(results) - faults} correct references",
        tone="bad" if any(result.outcome.fails for result in results) else "plain",
    )


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
