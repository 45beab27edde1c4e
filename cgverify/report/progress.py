"""What a run shows while it works: the cell in progress, how far it is, and each fault when it is found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from cgverify.common.printable import printable
from cgverify.common.records import Cell, CellResult
from cgverify.plan.batches import CellBatch
from cgverify.plan.cost.of_plan import seconds
from cgverify.report.numbers import counted
from cgverify.report.outcome import Fault, new_failures
from cgverify.report.render import VERDICT_STYLES

NAMED = ("model", "candidate", "dtype", "device", "rotary_dim", "attention", "case", "seed")
"""The fields of a cell that are shown with its component, if they differ within a run."""


def notebook() -> Console | None:
    """Return where progress is shown in a notebook; None outside of one, or without ipywidgets, which rich needs."""
    console = Console()
    return console if console.is_jupyter and find_spec("ipywidgets") else None


class RunProgress:
    """A line at the bottom of a terminal or below a notebook's cell, and above it a sentence for each fault.

    The bar and the time that is left count estimated seconds (`cgverify.plan.cost`), since cells differ in size.
    """

    def __init__(
        self, console: Console | None, batches: Sequence[CellBatch], finished: Iterable[CellResult] = ()
    ) -> None:
        """
        Args:
            console: where it is shown; None shows nothing.
            finished: results of these cells that exist already.
        """
        cells = [cell for batch in batches for cell in batch.cells]
        self._console = console
        self._cost = {
            cell.id: max(1, round(1e6 * seconds(batch) / len(batch.cells))) for batch in batches for cell in batch.cells
        }
        """Estimated microseconds of the cells that are not finished, by cell id."""
        self._number = len(cells)
        self._named = [name for name in NAMED if len({getattr(cell, name) for cell in cells}) > 1]
        self._faults: set[Fault] = set()
        self._progress = Progress(
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            BarColumn(20),
            TextColumn("{task.fields[cells]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            TextColumn("{task.fields[faults]}", style="bold red"),
            console=console,
            transient=True,
            expand=True,
            disable=console is None,
        )
        total = sum(self._cost.values())
        self._task = self._progress.add_task("starting", total=total, cells="", faults="")
        for result in finished:
            self.finish(result)
        self._progress.reset(self._task, completed=total - sum(self._cost.values()))  # they say nothing of the speed

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console is not None:  # older versions of rich end a line even if nothing is shown
            self._progress.stop()

    def observe(self, cell: Cell | None) -> None:
        """Show a cell as in progress; None before cells are judged. See `cgverify.plan.batches.Watch`."""
        self._progress.update(self._task, description="comparing with the oracle" if cell is None else self._name(cell))

    def finish(self, result: CellResult) -> None:
        """Count a finished cell, and print its faults unless an earlier cell had them."""
        if self._console is None:
            return
        advance = self._cost.pop(result.cell.id, 0)
        for failure in new_failures(result, self._faults):
            verdict = failure.finding.verdict
            text = Text.assemble((verdict.value, VERDICT_STYLES[verdict]), f" {printable(failure.sentence)}")
            self._progress.console.print(text, soft_wrap=True)
        self._progress.update(
            self._task,
            advance=advance,
            description=self._name(result.cell),
            cells=f"{self._number - len(self._cost)}/{self._number}",
            faults=counted(len(self._faults), "fault") if self._faults else "",
        )

    def through(self, results: Iterable[CellResult]) -> Iterator[CellResult]:
        """Yield results, each of which is counted."""
        for result in results:
            self.finish(result)
            yield result

    def _name(self, cell: Cell) -> str:
        return printable(" ".join([cell.component, *(str(getattr(cell, name)) for name in self._named)]))
