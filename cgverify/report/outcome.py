"""What a run came to: counts, exit code, and each failure as one sentence."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from cgverify.records import Cell, CellResult, Finding, Verdict


@dataclass(frozen=True)
class Failure:
    """A fault, at the cell where it is worst, with the number of cells that show it."""

    cell: Cell
    finding: Finding
    cells: int

    @property
    def sentence(self) -> str:
        more = f" (and in {self.cells - 1} more cells)" if self.cells > 1 else ""
        cell, step = self.cell, f" {self.finding.step}" if self.finding.step not in ("", "forward") else ""
        where = f"{cell.component}, {cell.candidate} in {cell.dtype}, case {cell.case}{step}"
        return f"{where}: {self.finding.message}{more}."

    def command(self, model: str, weights: str) -> str:
        """The command that repeats the cell alone, with `--model` and `--weights` as they were given."""
        cell = self.cell
        arguments = [
            *("cgverify", "all-components", "--model", model, "--weights", weights),
            *("--component", cell.component, "--case", cell.case),
            *("--bridge", cell.candidate, "--dtype", cell.dtype, "--device", cell.device),
            *("--rotary-dim", str(cell.rotary_dim), "--seed", str(cell.seed)),
            *("--batch-size", str(cell.batch_size), "--seq-len", str(cell.seq_len)),
        ]
        if cell.layer is not None:
            arguments += ["--layers", str(cell.layer)]
        return shlex.join(arguments)


def counts(results: Sequence[CellResult]) -> dict[Verdict, int]:
    """How many findings have each verdict."""
    total = dict.fromkeys(Verdict, 0)
    for result in results:
        for finding in result.findings:
            total[finding.verdict] += 1
    return total


def exit_code(results: Sequence[CellResult]) -> int:
    """1 a parity failure, 3 something could not be run, 5 nothing was compared, 0 all held; in this order."""
    total = counts(results)
    if any(total[verdict] for verdict in Verdict if verdict.fails):
        return 1
    if total[Verdict.ERROR]:
        return 3
    if not any(total[verdict] for verdict in Verdict if verdict.compares):
        return 5
    return 0


def failures(results: Sequence[CellResult]) -> list[Failure]:
    """Every fault once, in the order of the computation, where its r is greatest.

    Findings that share candidate, dtype, kind of component, stage, tap and verdict are one fault.
    """
    groups: dict[tuple[object, ...], list[tuple[Cell, Finding]]] = {}
    for result in results:
        for finding in result.findings:
            if finding.verdict.fails or finding.verdict is Verdict.ERROR:
                cell = result.cell
                key = (cell.candidate, cell.dtype, cell.device, cell.kind, finding.stage, finding.tap, finding.verdict)
                groups.setdefault(key, []).append((cell, finding))
    return [
        Failure(*max(group, key=lambda pair: pair[1].r or 0.0), cells=len({cell.id for cell, _ in group}))
        for group in groups.values()
    ]


def suspects(results: Sequence[CellResult]) -> list[tuple[Cell, Finding]]:
    """Findings where the reference breaks its own bound."""
    return [
        (result.cell, finding)
        for result in results
        for finding in result.findings
        if finding.reference_r is not None and finding.reference_r > 1
    ]


def silent_hooks(results: Sequence[CellResult]) -> dict[str, list[str]]:
    """For each candidate, the hooks that fired in none of the cells whose component has them."""
    heard: dict[tuple[str, str], list[set[str]]] = {}
    for result in results:
        if any(finding.verdict.compares and finding.shape for finding in result.findings):
            heard.setdefault((result.cell.candidate, result.cell.kind), []).append(set(result.silent_hooks))
    silent: dict[str, list[str]] = {}
    for (candidate, kind), cells in heard.items():
        silent.setdefault(candidate, []).extend(f"{kind}: {hook}" for hook in sorted(set.intersection(*cells)))
    return {candidate: hooks for candidate, hooks in silent.items() if hooks}
