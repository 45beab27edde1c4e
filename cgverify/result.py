"""A run as Python code has it: its findings as tables, and whether they held. No torch here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from cgverify.baseline import load
from cgverify.records import CellResult, Run, Verdict
from cgverify.report.frames import findings_frame, summary_frame
from cgverify.report.outcome import counts, exit_code, failures
from cgverify.store import read_plan

TOLD = 5
"""How many failures `assert_ok` tells."""


@dataclass(frozen=True)
class Result:
    """A run and what it found."""

    run: Run
    results: tuple[CellResult, ...]
    """In the plan's order."""
    folder: Path | None
    """Where it is kept; None where it is not."""
    planned: int
    """How many cells were to be verified."""

    @cached_property
    def findings(self) -> pd.DataFrame:
        """One row per tap of every cell, the columns of `findings.csv`."""
        return findings_frame(self.results)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row per component and setting, the columns of `summary.csv`."""
        return summary_frame(self.results)

    @property
    def exit_code(self) -> int:
        """What the command line would have ended with."""
        code = exit_code(self.results)
        return code if code == 1 or len(self.results) == self.planned else 3

    @property
    def ok(self) -> bool:
        """Whether everything was verified, and everything held."""
        return self.exit_code == 0

    def assert_ok(self) -> None:
        """Raise AssertionError, with a sentence for each failure, unless everything was verified and held."""
        if not self.ok:
            raise AssertionError("\n".join(self._reasons()))

    def _reasons(self) -> list[str]:
        found = failures(self.results)
        told = [
            f"{failure.finding.verdict.value} {failure.cell.model} {failure.sentence}\n    {failure.command(self.run)}"
            for failure in found[:TOLD]
        ]
        if len(found) > TOLD:
            told.append(f"… and {len(found) - TOLD} more: see the findings.")
        if len(self.results) < self.planned:
            told.append(f"Only {len(self.results)} of {self.planned} cells were verified.")
        if not told:
            refused = counts(self.results)[Verdict.UNSUPPORTED]
            told.append(f"Nothing was compared: Hugging Face refuses {refused} cells.")
        return told


def load_run(folder: str | os.PathLike[str]) -> Result:
    """A run that was kept, of this cgverify or an older one; also one that was interrupted, or still goes on; or a
    baseline.

    Raises:
        RunFolderError: no run there, a damaged one, or one of a newer cgverify.
    """
    path = Path(folder)
    stored = load(path)
    return Result(stored.run, tuple(stored.results), path, len(read_plan(path)) or len(stored.results))
