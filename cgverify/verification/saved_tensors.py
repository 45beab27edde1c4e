"""The tensors of a finding, as one safetensors file in the run folder.

    safetensors.torch.load_file("RUN/tensors/CELL-STEP-TAP.safetensors")

| key | tensor |
|---|---|
| `given.…` | an input of the step, such as `given.hidden_states` |
| `input.…` | a tap of the candidate that the stage starts from, such as `input.hook_q` |
| `candidate`, `reference` | the tap on each side; `reference` is left out if Hugging Face has no such tensor |
| `expected`, `bound` | the oracle's float64 value, and the bound on the distance from it |

The oracle's value of a large product is computed again for a tap that is saved, because the product was checked one
block of columns at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from cgverify.common.errors import StorageError
from cgverify.common.records import Finding, Verdict
from cgverify.verification.diagnosis.mismatch import CandidateStage

KEEP: dict[str, Callable[[Verdict], bool]] = {
    "failed": lambda verdict: verdict.fails,
    "all": lambda verdict: verdict.compares,
    "none": lambda _: False,
}
"""By value of `--keep-tensors`: whether the tensors of a finding with that verdict are kept."""


@dataclass(frozen=True)
class SavedTensors:
    """Saves tensors in a run folder: a `cgverify.verification.judge.KeepTensors`."""

    folder: Path
    kept: str
    """A key of `KEEP`."""

    def __call__(self, finding: Finding, stage: CandidateStage) -> Finding:
        """Return the finding, with the path of its tensors in the run folder if they are kept.

        Raises:
            StorageError: the file cannot be written.
        """
        if not KEEP[self.kept](finding.verdict):
            return finding
        return finding.model_copy(update={"tensors": self._save(stage)})

    def _save(self, one: CandidateStage) -> str:
        step, stage = one.step, one.stage
        ours, theirs, index = step.candidate.tensors, step.reference.tensors, step.stages.index(stage)
        tensors = {name: tensor for name, tensor in ours.items() if name.startswith("given.")}
        for name in step.candidate.read.get(index) or step.reference.read.get(index) or []:
            if name in ours:
                tensors[f"input.{name}"] = ours[name]
        for side, seen in (("candidate", ours), ("reference", theirs)):
            if stage.tap in seen:
                tensors[side] = seen[stage.tap]
        if one.expected is not None:
            tensors |= {"expected": one.expected.value, "bound": one.expected.bound}
        name = f"{one.cell.id}-{step.name.replace(' ', '-')}-{stage.name}-{stage.tap}.safetensors"
        path = Path("tensors") / name
        # Clones: safetensors refuses tensors that share memory, as a tap and its source may.
        cloned = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        try:
            (self.folder / path).parent.mkdir(exist_ok=True)
            save_file(cloned, self.folder / path)
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"Cannot write to {self.folder / path}: {error}. What was finished is kept: make room, and "
                "--resume goes on."
            ) from error
        return path.as_posix()
