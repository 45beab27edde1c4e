"""Observed cells -> finished cells: check every stage, and explain what failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cgverify.common.errors import StorageError, UsageError
from cgverify.common.records import Cell, CellResult, Finding, Verdict
from cgverify.observe.fault import reason
from cgverify.oracle.parameters import Parameters
from cgverify.verification import messages
from cgverify.verification.check import check_stages, forget_checks
from cgverify.verification.diagnosis.causes import cause_of
from cgverify.verification.diagnosis.confirmation import confirmation
from cgverify.verification.diagnosis.mismatch import CandidateStage
from cgverify.verification.findings import drop_repeated_missing, findings_of, silent_hooks
from cgverify.verification.messages import FirstBreak
from cgverify.verification.observed import ObservedCell

KeepTensors = Callable[[Finding, CandidateStage], Finding]
"""Save the tensors of a finding if they are wanted, and return the finding with their path."""


@dataclass(frozen=True)
class Judge:
    """Judges observed cells, of one run all in the same way."""

    keep: KeepTensors | None = None
    """None keeps no tensors."""
    with_sentence: bool = True
    """Whether a failed cell gets a sentence and its findings their causes, which takes more forwards and products."""

    def results(self, observed: Sequence[ObservedCell], parameters: Parameters) -> list[CellResult]:
        """Return the results of cells that share the reference's weights."""
        started = time.perf_counter()
        errors = _check(observed, parameters)
        share = (time.perf_counter() - started) / max(len(observed), 1)
        results = []
        for one, error in zip(observed, errors, strict=True):
            if error is None:
                try:
                    results.append(self._result(one, parameters, share))
                    continue
                except (UsageError, StorageError):  # they end the run
                    raise
                except Exception as own:  # a fault of this package, memory: never a finding about a side
                    error = reason(own)
            results += uncompared([one.cell], Verdict.ERROR, error)
        return results

    def _result(self, observed: ObservedCell, parameters: Parameters, checking_seconds: float) -> CellResult:
        """Return the result of one cell. To explain a failure is not part of the time of its judging."""
        failure = observed.failure
        if failure is not None:
            return uncompared([observed.cell], Verdict.DIVERGED, str(failure), where=failure.where)[0]
        started = time.perf_counter()
        attention = observed.cell.attention
        found = drop_repeated_missing(one for step in observed.steps for one in findings_of(step, attention))
        judging_seconds = checking_seconds + time.perf_counter() - started
        try:
            findings, first = self._explained(observed, found, parameters)
            blame = self._sentence(observed, findings, first) if self.with_sentence else ""
        except (UsageError, StorageError):  # they end the run
            raise
        except Exception as error:  # the findings are kept, and that they are not explained is an error
            message = f"what was found is not explained: {reason(error)}"
            findings = [*found, Finding(step="", tap="", stage="", verdict=Verdict.ERROR, message=message)]
            blame = self._sentence(observed, found, None)
        return CellResult(
            cell=observed.cell,
            findings=(*findings, *observed.extra_findings),
            silent_hooks=silent_hooks(observed),
            blame=blame,
            seconds=time.perf_counter() - observed.started,
            candidate_seconds=observed.candidate_seconds,
            reference_seconds=observed.reference_seconds,
            judging_seconds=judging_seconds,
        )

    def _explained(
        self, observed: ObservedCell, found: Sequence[Finding], parameters: Parameters
    ) -> tuple[list[Finding], FirstBreak | None]:
        """Return the findings with causes and saved tensors, and the first stage that diverged."""
        steps = {step.name: step for step in observed.steps}
        findings: list[Finding] = []
        first: FirstBreak | None = None
        for finding in found:
            step = steps[finding.step]
            stage = step.stage_of.get((finding.stage, finding.tap))
            if stage is not None:
                as_run = parameters.with_cast_table() if step.conditions.cast_table else parameters
                of_candidate = CandidateStage(observed.cell, step, stage, as_run)
                diverged = finding.verdict is Verdict.DIVERGED
                mismatch = of_candidate.mismatch if diverged and self.with_sentence else None
                if mismatch is not None and (cause := cause_of(mismatch)):
                    finding = messages.with_cause(finding, cause)
                if self.keep is not None:
                    finding = self.keep(finding, of_candidate)
                if diverged and first is None:
                    first = FirstBreak(of_candidate, finding)
            findings.append(finding)
        return findings, first

    @staticmethod
    def _sentence(observed: ObservedCell, findings: Sequence[Finding], first: FirstBreak | None) -> str:
        # A processed weight that is wrong comes before everything that is computed with it.
        for finding in observed.extra_findings:
            if finding.verdict.fails:
                return finding.message
        confirmed = "" if first is None else confirmation(observed, first.stage)
        return messages.cell_sentence(findings, first, confirmed)


DEFAULT_JUDGE = Judge()


def _check(observed: Sequence[ObservedCell], parameters: Parameters) -> list[str | None]:
    """Check the stages of all cells, and return for each why that failed; None if it did not.

    If checking all at once fails, each cell is checked by itself: it takes less memory, and others may be fine.
    """
    ready = [one for one in observed if one.error is None]
    errors = {id(one): one.error for one in observed}
    try:
        check_stages((step for one in ready for step in one.steps), parameters)
    except Exception:
        for one in ready:
            forget_checks(one.steps)
            try:
                check_stages(one.steps, parameters)
            except Exception as error:  # a fault of this package, memory: never a finding about a side
                errors[id(one)] = reason(error)
    return [errors[id(one)] for one in observed]


def uncompared(cells: Iterable[Cell], verdict: Verdict, message: str, where: str = "") -> list[CellResult]:
    """Return the results of cells that could not be compared.

    Args:
        verdict: `unsupported` if the reference refuses them, `diverged` if the candidate failed, else `error`.
        where: where the candidate failed.
    """
    finding = Finding(step="", tap=where, stage=where, verdict=verdict, message=message)
    return [CellResult(cell=cell, findings=(finding,), seconds=0.0) for cell in cells]
