"""A run as JUnit XML: a suite per setting, a test case per cell.

A parity failure is a `failure`, a cell that could not be run is an `error`, and a cell in which everything is
`unsupported` is `skipped`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from cgverify.common.records import CellResult, Finding, Run, Verdict
from cgverify.report.frames import setting_of

MOST_FINDINGS = 50
"""Findings in the text of a test case. findings.csv has all of them."""
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot contain, not even escaped."""


def junit_xml(run: Run, results: Sequence[CellResult]) -> str:
    report = JUnitXml("cgverify")
    for setting, cells in groupby(results, key=lambda result: setting_of(result.cell)):
        suite = TestSuite(_clean(" · ".join(setting)))
        suite.timestamp = run.created
        suite.add_testcases([_case(result) for result in cells])
        report.append(suite)
    report.update_statistics()
    text: bytes = report.tostring()
    return text.decode("utf-8") + "\n"


def _case(result: CellResult) -> TestCase:
    cell = result.cell
    case = TestCase(
        name=f"{cell.component}[{cell.case}-seed{cell.seed}-{cell.batch_size}x{cell.seq_len}]",
        classname=_clean(".".join(part.replace(".", "_") for part in setting_of(cell))),
        time=round(result.seconds, 3),
    )
    failed = [finding for finding in result.findings if finding.verdict.fails]
    errors = [finding for finding in result.findings if finding.verdict is Verdict.ERROR]
    if failed:
        case.result = [_described(Failure, failed)]
    elif errors:
        case.result = [_described(Error, errors)]
    elif result.verdict is Verdict.UNSUPPORTED and not any(finding.verdict.compares for finding in result.findings):
        case.result = [Skipped(message=_clean(result.findings[0].message))]
    return case


def _described(kind: type[Failure | Error], findings: Sequence[Finding]) -> Failure | Error:
    """Return a result with the findings as text. The message is the first finding, which is the fault."""
    first = findings[0]
    described = kind(message=_clean(first.message), type_=_clean(first.stage or first.verdict.value))
    lines = [
        " ".join(part for part in (finding.verdict.value, finding.step, finding.tap) if part) + f": {finding.message}"
        for finding in findings[:MOST_FINDINGS]
    ]
    if len(findings) > MOST_FINDINGS:
        lines.append(f"… and {len(findings) - MOST_FINDINGS} more")
    described.text = _clean("\n".join(lines))
    return described


def _clean(text: str) -> str:
    return NOT_XML.sub("\ufffd", text)
