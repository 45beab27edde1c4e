"""A run on the screen: the tables of the command that made it, as text."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from cgverify.common.records import CellResult, Run
from cgverify.report.heads import by_head
from cgverify.report.table import Tables, by_component, show
from cgverify.report.taps import by_tap

TABLES: dict[str, tuple[Tables, ...]] = {"attention": (by_tap,)}
"""By command; a row per component for every other."""

VERBOSE: tuple[Tables, ...] = (by_component, by_head)


def render(run: Run, results: Sequence[CellResult], tables: Sequence[Tables] | None = None) -> str:
    """The report as text for stdout, in colour where that is a terminal.

    Args:
        tables: None are those of the run's command.
    """
    console = Console()
    with console.capture() as captured:
        show(console, run, results, TABLES.get(run.command, (by_component,)) if tables is None else tables)
    return captured.get()
