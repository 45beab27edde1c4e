"""The tensors behind a finding, as one safetensors file in the run folder.

    safetensors.torch.load_file("RUN/tensors/CELL-STEP-TAP.safetensors")

| key | |
|---|---|
| `given.…` | what the step was given, `given.hidden_states` |
| `input.…` | the candidate's own taps that the stage starts from, `input.hook_q` |
| `candidate`, `reference` | the tap on both sides; no `reference` where it has none |
| `expected`, `bound` | the oracle's float64 value and the bound on the distance from it |

The oracle's value is computed once more for the taps that are kept: large products were judged a block of columns at
a time, and no run holds more than one whole value in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from cgverify.common.errors import StorageError
from cgverify.common.records import Cell, Finding, Verdict
from cgverify.observe.stages import Stage, expected_tap
from cgverify.oracle.parameters import Parameters
from cgverify.verification.check import ObservedStep

KEEP: dict[str, Callable[[Verdict], bool]] = {
    "failed": lambda verdict: verdict.fails,
    "all": lambda verdict: verdict.compares,
    "none": lambda _: False,
}
"""`--keep-tensors`: of which verdicts."""


def keep(folder: Path, cell: Cell, step: ObservedStep, stage: Stage, parameters: Parameters) -> str:
    """Write the tensors of a stage of the candidate; returns the file's path in the run folder.

    Raises:
        StorageError: it cannot be written.
    """
    view, place = step.candidate.view, step.stages.index(stage)
    tensors = {name: tensor for name, tensor in view.items() if name.startswith("given.")}
    for name in step.candidate.read.get(place) or step.reference.read.get(place) or []:
        if name in view:
            tensors[f"input.{name}"] = view[name]
    for side, seen in (("candidate", view), ("reference", step.reference.view)):
        if stage.tap in seen:
            tensors[side] = seen[stage.tap]
    answer = expected_tap(stage, view, parameters)
    if answer is not None:
        tensors |= {"expected": answer.value, "bound": answer.bound}
    path = Path("tensors") / f"{cell.id}-{step.name.replace(' ', '-')}-{stage.name}-{stage.tap}.safetensors"
    # Clones: safetensors refuses tensors that share memory, as a tap and its source may.
    apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        (folder / path).parent.mkdir(exist_ok=True)
        save_file(apart, folder / path)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"Cannot write to {folder / path}: {error}. What was finished is kept: make room, and --resume goes on."
        ) from error
    return str(path)


def with_evidence(
    findings: list[Finding], cell: Cell, step: ObservedStep, parameters: Parameters, folder: Path, kept: str
) -> list[Finding]:
    """The findings of a step, each that is to be kept with the path of its tensors."""
    wanted = KEEP[kept]
    stages = {(stage.name, stage.tap): stage for stage in step.stages}
    return [
        finding.model_copy(update={"tensors": keep(folder, cell, step, stage, parameters)})
        if (stage := stages.get((finding.stage, finding.tap))) is not None and wanted(finding.verdict)
        else finding
        for finding in findings
    ]
