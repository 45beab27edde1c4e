"""A run as JUnit XML: a suite per setting, a test case per cell.

A parity failure is a `failure`, what could not be run an `error`, and what Hugging Face refuses altogether `skipped`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from cgverify.common.records import Cell, CellResult, Finding, Run, Verdict

SHOWN = 50
"""Findings told of one cell. All of them stand in findings.csv."""
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, not even escaped."""


def render(run: Run, results: Sequence[CellResult]) -> str:
    """The report as text."""
    report = JUnitXml("cgverify")
    for setting, cells in groupby(results, key=lambda result: _setting(result.cell)):
        suite = TestSuite(_clean(" · ".join(setting)))
        suite.timestamp = run.created
        suite.add_testcases([_case(result) for result in cells])
        report.append(suite)
    report.update_statistics()
    text: bytes = report.tostring()
    return text.decode("utf-8")


def _setting(cell: Cell) -> tuple[str, ...]:
    return cell.model, cell.candidate, cell.dtype, cell.device, f"rotary_dim {cell.rotary_dim}"


def _case(result: CellResult) -> TestCase:
    cell = result.cell
    case = TestCase(
        name=f"{cell.component}[{cell.case}-seed{cell.seed}-{cell.batch_size}x{cell.seq_len}]",
        classname=_clean(".".join(part.replace(".", "_") for part in _setting(cell))),
        time=round(result.seconds, 3),
    )
    failed = [finding for finding in result.findings if finding.verdict.fails]
    errors = [finding for finding in result.findings if finding.verdict is Verdict.ERROR]
    if failed:
        case.result = [_told(Failure, failed)]
    elif errors:
        case.result = [_told(Error, errors)]
    elif result.verdict is Verdict.UNSUPPORTED and not any(finding.verdict.compares for finding in result.findings):
        case.result = [Skipped(message=_clean(result.findings[0].message))]
    return case


def _told(kind: type[Failure | Error], findings: Sequence[Finding]) -> Failure | Error:
    """The first finding as the message, since the first stage that fails is the fault; all of them as the text."""
    told = kind(message=_clean(findings[0].message), type_=_clean(findings[0].stage or findings[0].verdict.value))
    lines = [
        " ".join(part for part in (finding.verdict.value, finding.step, finding.tap) if part) + f": {finding.message}"
        for finding in findings[:SHOWN]
    ]
    if len(findings) > SHOWN:
        lines.append(f"… and {len(findings) - SHOWN} more")
    told.text = _clean("\n".join(lines))
    return told


def _clean(text: str) -> str:
    return NOT_XML.sub("\ufffd", text)
