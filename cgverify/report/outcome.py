"""What a run came to: counts, exit code, and each failure as one sentence."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from cgverify.records import Cell, CellResult, Finding, Run, Verdict


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
        return f"{where}: {self.finding.message.rstrip('.')}{more}."

    def command(self, run: Run) -> str:
        """The command that repeats the cell alone. What is a default goes without saying."""
        cell, of = self.cell, run.checkpoint_of(self.cell)
        options = {
            "--weights": (of.weights, "auto"),
            "--bridge": (cell.candidate, "cgverify"),
            "--dtype": (cell.dtype, "float32"),
            "--device": (cell.device, "cpu"),
            "--rotary-dim": (cell.rotary_dim, of.rotary_dim),
            "--seed": (cell.seed, 0),
            "--batch-size": (cell.batch_size, 2),
            "--seq-len": (cell.seq_len, 8),
            "--allow": (",".join(run.settings.get("allow", ())), ""),
        }
        said = [part for name, (value, default) in options.items() if value != default for part in (name, str(value))]
        where = ["--component", cell.component, "--case", cell.case]
        return shlex.join(["cgverify", "all-components", "--model", of.asked, *where, *said])


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
    """Every fault once, in the order of the computation.

    Findings that share candidate, dtype, device, stage, tap and verdict are one fault, whichever layers and cases they
    are of; one that shows in a component by itself is not told again for the block around it.
    """
    groups: dict[tuple[object, ...], list[tuple[Cell, Finding]]] = {}
    for result in results:
        for finding in result.findings:
            if finding.verdict.fails or finding.verdict is Verdict.ERROR:
                cell = result.cell
                tap = finding.tap.removeprefix("attn.").removeprefix("mlp.").removeprefix("ln1.")
                key = (cell.model, cell.candidate, cell.dtype, cell.device, finding.stage, tap, finding.verdict)
                groups.setdefault(key, []).append((cell, finding))
    return [Failure(*max(group, key=_telling), cells=len({cell.id for cell, _ in group})) for group in groups.values()]


def _telling(found: tuple[Cell, Finding]) -> tuple[bool, float]:
    """A component by itself tells more than the block around it, and a large r more than a small one."""
    cell, finding = found
    return cell.kind != "block", finding.r or 0.0


def suspects(results: Sequence[CellResult]) -> list[tuple[Cell, Finding]]:
    """Findings where the reference breaks its own bound."""
    return [
        (result.cell, finding)
        for result in results
        for finding in result.findings
        if finding.reference_r is not None and finding.reference_r > 1
    ]


def silent_hooks(results: Sequence[CellResult]) -> dict[str, list[str]]:
    """For each candidate, the hooks that fired in no cell at all."""
    silent: dict[str, dict[str, bool]] = {}
    for result in results:
        cell = result.cell
        for hook in result.silent_hooks:
            name = hook if cell.kind == "block" else f"{cell.kind}.{hook}"
            silent.setdefault(cell.candidate, {}).setdefault(name, True)
    return {candidate: sorted(hooks) for candidate, hooks in silent.items()}
