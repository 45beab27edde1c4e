"""A run as one JSON object: `{"run", "summary", "failed", "findings"}`, NaN and infinity as strings."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from cgverify.common.records import CellResult, Record, Run
from cgverify.report.frames import CELL
from cgverify.report.outcome import counts, exit_code, silent_hooks


def render(run: Run, results: Sequence[CellResult]) -> str:
    """The report as text."""
    described = {
        "run": _plain(run),
        "summary": summary(results),
        "failed": failed(results),
        "findings": findings(results),
    }
    return json.dumps(described, allow_nan=False)


def summary(results: Sequence[CellResult]) -> dict[str, Any]:
    """`cells`, `taps`, a count per verdict, `ok`, and the hooks that never fired."""
    total = counts(results)
    return {
        "cells": len(results),
        "taps": sum(number for verdict, number in total.items() if verdict.compares),
        **{verdict.value: number for verdict, number in total.items()},
        "ok": exit_code(results) == 0,
        "silent_hooks": silent_hooks(results),
    }


def failed(results: Sequence[CellResult]) -> list[dict[str, Any]]:
    """Every cell that failed, with why, as a sentence."""
    return [
        {column: getattr(result.cell, column) for column in CELL} | {"blame": result.blame}
        for result in results
        if result.verdict.fails
    ]


def findings(results: Sequence[CellResult]) -> list[dict[str, Any]]:
    """Every finding with the fields of its cell."""
    return [
        {column: getattr(result.cell, column) for column in CELL} | _plain(finding)
        for result in results
        for finding in result.findings
    ]


def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A DataFrame's rows as JSON has them: null where there is no figure, infinity as the string `Infinity`."""
    endless = {math.inf: "Infinity", -math.inf: "-Infinity"}
    shown = frame.astype(object).where(frame.notna(), None).replace(endless)
    return [{str(name): value for name, value in row.items()} for row in shown.to_dict("records")]


def _plain(record: Record) -> dict[str, Any]:
    """A record as JSON has it: only pydantic's JSON writes NaN and infinity as strings."""
    plain: dict[str, Any] = json.loads(record.model_dump_json())
    return plain
