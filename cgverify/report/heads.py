"""How far each head of a tap can be trusted: a row per head, a column per tap that has heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE
from rich.console import RenderableType
from rich.table import Table

from cgverify.common.printable import printable
from cgverify.common.records import CellResult, Finding, Run
from cgverify.report.figures import bits

Setting = tuple[str, ...]


def by_head(_: Run, results: Sequence[CellResult], width: int) -> list[RenderableType]:
    """For each setting, the fewest bits and the greatest error of each head over all cells of attention by itself."""
    settings: dict[Setting, list[Finding]] = {}
    for result in results:
        cell = result.cell
        if cell.kind == "attn":
            key = (cell.model, cell.candidate, cell.dtype, cell.device, f"rotary_dim {cell.rotary_dim}")
            settings.setdefault(key, []).extend(finding for finding in result.findings if finding.bits_by_head)
    return [
        _table(f"heads of {' · '.join(key)}", found, taps)
        for key, found in settings.items()
        for taps in _that_fit(list(dict.fromkeys(finding.tap for finding in found)), width)
    ]


def _that_fit(taps: Sequence[str], width: int) -> Iterator[list[str]]:
    """The taps, as many beside each other as a console has room for."""
    row: list[str] = []
    left = width - len(" head ")
    for tap in taps:
        needed = max(len(_heading(tap)), len("21.3 4e-07")) + 1
        if row and needed > left:
            yield row
            row, left = [], width - len(" head ")
        row.append(tap)
        left -= needed
    if row:
        yield row


def _heading(tap: str) -> str:
    return tap.removeprefix("hook_")


def _table(title: str, findings: Sequence[Finding], taps: Sequence[str]) -> Table:
    heads = max(len(finding.bits_by_head) for finding in findings)
    table = Table(
        title=printable(title),
        title_justify="left",
        title_style="bold",
        caption="bits that can be trusted, greatest error",
        caption_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("head", justify="right")
    for tap in taps:
        table.add_column(printable(_heading(tap)), justify="right", no_wrap=True)
    for head in range(heads):
        table.add_row(str(head), *(_of_head(head, [one for one in findings if one.tap == tap]) for tap in taps))
    return table


def _of_head(head: int, findings: Sequence[Finding]) -> str:
    """`21.3 4e-07`, or `exact`."""
    seen = [one for one in findings if head < len(one.bits_by_head)]
    if not seen:
        return "–"
    error = max(one.errors_by_head[head] for one in seen)
    return bits(min(one.bits_by_head[head] for one in seen)) + (f" {error:.0e}" if error else "")
