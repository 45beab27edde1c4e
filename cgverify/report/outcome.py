"""What a run came to: counts, exit code, and each failure as one sentence."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cgverify.common.printable import printable
from cgverify.common.records import IN_MEMORY, Cell, CellResult, Finding, Run, Verdict
from cgverify.plan.cells import WHOLE


@dataclass(frozen=True)
class Failure:
    """A fault, at the cell where it is worst, with the number of cells that show it."""

    cell: Cell
    finding: Finding
    cells: int
    why: str
    """What is wrong, without a full stop."""

    @property
    def sentence(self) -> str:
        more = f" (and in {self.cells - 1} more cell{'s' * (self.cells > 2)})" if self.cells > 1 else ""
        cell = self.cell
        step = f" {self.finding.step}" if self.finding.step not in ("", "forward", cell.case) else ""
        where = f"{cell.component}, {cell.candidate} in {cell.dtype}, case {cell.case}{step}"
        return printable(f"{where}: {self.why.rstrip('.')}{more}.")

    def command(self, run: Run) -> str:
        """The command, or of models in memory the call, that repeats the cell alone. Defaults go without saying."""
        cell, of = self.cell, run.checkpoint_of(self.cell)
        if of.origin == IN_MEMORY:
            return self._call()
        options = {
            "--weights": (of.weights, "auto"),
            "--bridge": (cell.candidate, "cgverify"),
            "--dtype": (cell.dtype, "float32"),
            "--device": (cell.device, "cpu"),
            "--rotary-dim": (cell.rotary_dim, of.rotary_dim),
            "--seed": (cell.seed, 0),
            **self._inputs(run.settings),
            "--allow": (",".join(run.settings.get("allow", ())), ""),
        }
        said = [part for name, (value, default) in options.items() if value != default for part in (name, str(value))]
        where = ["--component", cell.component, "--case", cell.case]
        return printable(shlex.join(["cgverify", "all-components", "--model", of.asked, *where, *said]))

    def _call(self) -> str:
        cell = self.cell
        axes = {
            "layers": (cell.layer, None),
            "components": (cell.kind, ""),
            "cases": (cell.case, ""),
            "seeds": (cell.seed, 0),
            "batch_size": (cell.batch_size, 2),
            "seq_len": (cell.seq_len, 8),
        }
        said = [f"{name}={value!r}" for name, (value, default) in axes.items() if value != default]
        return f"cgverify.verify({', '.join(['bridge', 'reference', *said])})"

    def _inputs(self, settings: Mapping[str, Any]) -> dict[str, tuple[object, object]]:
        """The options that say what a cell's inputs are."""
        if self.cell.prompt:
            return {"--prompt": (settings.get("prompt"), None), "--tokens": (settings.get("tokens"), None)}
        return {"--batch-size": (self.cell.batch_size, 2), "--seq-len": (self.cell.seq_len, 8)}


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

    A fault is what breaks first in a forward of a cell; what breaks behind it may be led astray, and is counted in the
    cell's own sentence, which tells of all hooks that never fired as well. Faults that share candidate, dtype, device,
    stage, tap and verdict are one, whichever layers and cases they are of; one that shows in a component by itself is
    not told again for the block around it.
    """
    groups: dict[tuple[object, ...], list[tuple[Cell, Finding, str]]] = {}
    for result in results:
        cell = result.cell
        missing = {_in_attention(one.tap) for one in result.findings if one.verdict is Verdict.MISSING}
        for place, finding in enumerate(_first_of_each_step(result)):
            if finding.verdict is Verdict.MISSING:
                what: tuple[object, ...] = (frozenset(missing),)
            else:
                what = (finding.stage, _in_attention(finding.tap))
            why = result.blame if place == 0 and result.blame else finding.message
            key = (cell.model, cell.candidate, cell.dtype, cell.device, finding.verdict, *what)
            groups.setdefault(key, []).append((cell, finding, why))
    failures = []
    for group in groups.values():
        cell, finding, why = max(group, key=lambda found: _telling(*found))
        failures.append(Failure(cell, finding, cells=len({cell.id for cell, *_ in group}), why=why))
    return failures


def _in_attention(tap: str) -> str:
    """A tap's name without the part of the block that it is of."""
    return tap.removeprefix("attn.").removeprefix("mlp.").removeprefix("ln1.")


def _first_of_each_step(result: CellResult) -> list[Finding]:
    """Where a forward failed: the first of what diverged, or a hook that never fired where the cell has no more."""
    steps: dict[str, list[Finding]] = {}
    for finding in result.findings:
        if finding.verdict.fails or finding.verdict is Verdict.ERROR:
            steps.setdefault(finding.step, []).append(finding)
    firsts = [min(findings, key=lambda one: one.verdict is Verdict.MISSING) for findings in steps.values()]
    return [one for one in firsts if one.verdict is not Verdict.MISSING] or firsts[:1]


def _telling(cell: Cell, finding: Finding, why: str) -> tuple[bool, bool, float]:
    """A component by itself tells more than what is around it, a cell's sentence than a message, a large r more."""
    return cell.kind not in ("block", *WHOLE), why != finding.message, finding.r or 0.0


@dataclass(frozen=True)
class Times:
    """Seconds of a run's forwards, tapped, and of its oracle and judge."""

    candidate: float
    reference: float
    judging: float

    @property
    def sentence(self) -> str:
        """How the cost of judging stands to that of the forwards."""
        forwards = self.candidate + self.reference
        share = f", {self.judging / forwards:.2g} times as long" if forwards else ""
        return (
            f"forwards: candidate {self.candidate:.2f} s, reference {self.reference:.2f} s; "
            f"oracle and judge {self.judging:.2f} s{share}"
        )


def times(results: Sequence[CellResult]) -> Times:
    """What all cells took together."""
    return Times(
        candidate=sum(result.candidate_seconds for result in results),
        reference=sum(result.reference_seconds for result in results),
        judging=sum(result.judging_seconds for result in results),
    )


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
