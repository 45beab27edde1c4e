"""The outcome of a run: counts, exit code, and each failure as one sentence."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cgverify.common.printable import printable
from cgverify.common.records import EAGER, IN_MEMORY, Cell, CellResult, Finding, Run, Verdict
from cgverify.plan.cases import WHOLE
from cgverify.report.numbers import counted, figure


def every_finding(results: Iterable[CellResult]) -> Iterator[tuple[Cell, Finding]]:
    return ((result.cell, finding) for result in results for finding in result.findings)


def counts(results: Iterable[CellResult]) -> dict[Verdict, int]:
    """Return the number of findings with each verdict."""
    total = dict.fromkeys(Verdict, 0)
    for _, finding in every_finding(results):
        total[finding.verdict] += 1
    return total


def taps_compared(results: Iterable[CellResult]) -> int:
    return sum(number for verdict, number in counts(results).items() if verdict.compares)


def verdict_line(results: Sequence[CellResult]) -> str:
    """Return the number of cells and taps, and of findings with each verdict, as one line."""
    by_verdict = ", ".join(f"{number} {verdict.value}" for verdict, number in counts(results).items() if number)
    cells, taps = counted(len(results), "cell"), counted(taps_compared(results), "tap")
    return f"{cells}, {taps} compared: {by_verdict or 'nothing'}"


def exit_code(results: Iterable[CellResult]) -> int:
    """Return 1 for a parity failure, else 3 if something could not be run, 5 if nothing was compared, else 0."""
    total = counts(results)
    if any(total[verdict] for verdict in Verdict if verdict.fails):
        return 1
    if total[Verdict.ERROR]:
        return 3
    return 0 if any(total[verdict] for verdict in Verdict if verdict.compares) else 5


def place(cell: Cell, step: str = "") -> str:
    """Return where something was found: component, candidate, dtype, case, and the step if the case has several."""
    named = f" {step}" if step not in ("", "forward", cell.case) else ""
    implementation = "" if cell.attention == EAGER else f" with {cell.attention} attention"
    return f"{cell.component}, {cell.candidate} in {cell.dtype}{implementation}, case {cell.case}{named}"


def bare_tap(tap: str) -> str:
    """Return a tap's name without its component, which has the tap also if it is verified outside its block."""
    return tap.removeprefix("attn.").removeprefix("mlp.").removeprefix("ln1.")


Fault = tuple[object, ...]
"""The values that are equal for one fault in all its cells: see `failures`."""


@dataclass(frozen=True)
class Failure:
    """A fault, at the cell where it is worst."""

    cell: Cell
    finding: Finding
    why: str
    """What is wrong, without a full stop."""
    cells: int
    """The number of cells that have the fault."""

    @property
    def sentence(self) -> str:
        more = f" (and in {counted(self.cells - 1, 'more cell')})" if self.cells > 1 else ""
        return printable(f"{place(self.cell, self.finding.step)}: {self.why.rstrip('.')}{more}.")

    def command(self, run: Run) -> str:
        """Return the command that repeats the cell alone, without defaults; for models in memory the Python call."""
        cell, checkpoint = self.cell, run.checkpoint_of(self.cell)
        if run.command == "fuzz":
            where = ["--bridge", cell.candidate, "--component", cell.component, "--dtype", cell.dtype]
            again = ["--seed", str(cell.seed), "--output", run.settings["output"]]
            return printable(shlex.join(["cgverify", "fuzz", "--model", checkpoint.asked, *where, *again]))
        if checkpoint.origin == IN_MEMORY:
            return self._call()
        options = {
            "--weights": (checkpoint.weights, "auto"),
            "--bridge": (cell.candidate, "cgverify"),
            "--dtype": (cell.dtype, "float32"),
            "--device": (cell.device, "cpu"),
            "--rotary-dim": (cell.rotary_dim, checkpoint.rotary_dim),
            "--attention": (cell.attention, EAGER),
            "--seed": (cell.seed, 0),
            **self._inputs(run.settings),
            "--allow": (",".join(run.settings.get("allow", ())), ""),
        }
        given = [part for name, (value, default) in options.items() if value != default for part in (name, str(value))]
        where = ["--component", cell.component, "--case", cell.case]
        return printable(shlex.join(["cgverify", "all-components", "--model", checkpoint.asked, *where, *given]))

    def _call(self) -> str:
        cell = self.cell
        axes = {
            "layers": (cell.layer, None),
            "components": (cell.kind, ""),
            "cases": (cell.case, ""),
            "attentions": (cell.attention, EAGER),
            "seeds": (cell.seed, 0),
            "batch_size": (cell.batch_size, 2),
            "seq_len": (cell.seq_len, 8),
        }
        given = [f"{name}={value!r}" for name, (value, default) in axes.items() if value != default]
        return f"cgverify.verify({', '.join(['bridge', 'reference', *given])})"

    def _inputs(self, settings: Mapping[str, Any]) -> dict[str, tuple[object, object]]:
        """Return the options that describe a cell's inputs, each with its default."""
        if self.cell.prompt:
            return {"--prompt": (settings.get("prompt"), None), "--tokens": (settings.get("tokens"), None)}
        return {"--batch-size": (self.cell.batch_size, 2), "--seq-len": (self.cell.seq_len, 8)}


def failures(results: Iterable[CellResult]) -> list[Failure]:
    """Return every fault once, in the order of the computation.

    A fault is the first failure in a forward of a cell. Later failures may be consequences; the cell's own sentence
    counts them, and names all hooks that never fired. Faults with equal model, candidate, dtype, device, stage, tap and
    verdict are one fault, in whatever layers and cases. A fault of a component is not repeated for the block that
    contains the component.
    """
    groups: dict[Fault, list[tuple[Cell, Finding, str]]] = {}
    for result in results:
        for fault, finding, why in _faults(result):
            groups.setdefault(fault, []).append((result.cell, finding, why))
    return [
        Failure(*max(group, key=lambda one: _informative(*one)), cells=len({cell.id for cell, *_ in group}))
        for group in groups.values()
    ]


def new_failures(result: CellResult, seen: set[Fault]) -> list[Failure]:
    """Return the faults of one cell that are not in `seen`, and add them to it."""
    new = []
    for fault, finding, why in _faults(result):
        if fault not in seen:
            seen.add(fault)
            new.append(Failure(result.cell, finding, why, cells=1))
    return new


def _faults(result: CellResult) -> Iterator[tuple[Fault, Finding, str]]:
    """Yield each fault of a cell with its finding and why it is one, the first with the cell's own sentence."""
    cell = result.cell
    missing = {bare_tap(one.tap) for one in result.findings if one.verdict is Verdict.MISSING}
    for number, finding in enumerate(_first_of_each_step(result)):
        tap = (finding.stage, bare_tap(finding.tap))
        what = (frozenset(missing),) if finding.verdict is Verdict.MISSING else tap
        why = result.blame if number == 0 and result.blame else finding.message
        yield (cell.model, cell.candidate, cell.dtype, cell.device, finding.verdict, *what), finding, why


def _first_of_each_step(result: CellResult) -> list[Finding]:
    """Return the first divergence or error of each step; a hook that never fired if the cell has nothing else."""
    steps: dict[str, list[Finding]] = {}
    for finding in result.findings:
        if finding.verdict.fails or finding.verdict is Verdict.ERROR:
            steps.setdefault(finding.step, []).append(finding)
    firsts = [min(findings, key=lambda one: one.verdict is Verdict.MISSING) for findings in steps.values()]
    return [one for one in firsts if one.verdict is not Verdict.MISSING] or firsts[:1]


def _informative(cell: Cell, finding: Finding, why: str) -> tuple[bool, bool, float]:
    """Prefer a component to its block, a cell's sentence to a finding's message, and a large r to a small one."""
    return cell.kind not in ("block", *WHOLE), why != finding.message, finding.r or 0.0


def times_line(results: Sequence[CellResult]) -> str:
    """Return how long the tapped forwards of all cells took, and the oracle with the comparison, as one line."""
    candidate = sum(each.candidate_seconds for each in results)
    reference = sum(each.reference_seconds for each in results)
    judging = sum(each.judging_seconds for each in results)
    forwards = candidate + reference
    share = f", {judging / forwards:.2g} times as long" if forwards else ""
    return (
        f"forwards: candidate {candidate:.2f} s, reference {reference:.2f} s; oracle and judge {judging:.2f} s{share}"
    )


def suspects(results: Iterable[CellResult]) -> list[str]:
    """Return a sentence for each finding where the reference breaks its own bound."""
    return [
        f"{cell.component}, {finding.tap}, {cell.dtype}, {cell.case}: r of the reference is "
        f"{figure(finding.reference_r)}{finding.message and f'. {finding.message}'}"
        for cell, finding in every_finding(results)
        if finding.reference_r is not None and finding.reference_r > 1
    ]


def refusals(results: Iterable[CellResult]) -> list[str]:
    """Return each reason for which something is `unsupported`, once."""
    unsupported = (one.message for _, one in every_finding(results) if one.verdict is Verdict.UNSUPPORTED)
    return list(dict.fromkeys(unsupported))


def silent_hooks(results: Iterable[CellResult]) -> dict[str, list[str]]:
    """Return for each candidate the names of hooks that never fired in at least one cell."""
    silent: dict[str, set[str]] = {}
    for result in results:
        cell = result.cell
        for hook in result.silent_hooks:
            name = hook if cell.kind == "block" else f"{cell.kind}.{hook}"
            silent.setdefault(cell.candidate, set()).add(name)
    return {candidate: sorted(hooks) for candidate, hooks in silent.items()}
