"""Records with plain values, and a run folder with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cgverify.common.records import Cell, CellResult, Checkpoint, Finding, Run, Verdict
from cgverify.runs.folder import RunFolder
from cgverify.runs.reading import PlannedCell

ENVIRONMENT = {
    "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    "numerics": {"threads": 2, "tf32": False},
    "machine": {"processor": "A", "processors": 2},
}


def a_run(**fields: Any) -> Run:
    given: dict[str, Any] = {
        "created": "2026-01-01T00:00:00+00:00",
        "command": "all-components",
        "model": "m",
        "weights_origin": "random (seed 0)",
        "weights_digest": "d",
        "checkpoints": [
            {
                "name": "m",
                "asked": "m",
                "weights": "auto",
                "origin": "random (seed 0)",
                "digest": "d",
                "n_layers": 2,
                "rotary_dim": 8,
                "n_positions": 64,
                "n_embd": 64,
                "vocab_size": 101,
            }
        ],
        "settings": {"model": "m", "weights": "auto", "rotary_dims": []},
        "environment": ENVIRONMENT,
    }
    return Run(**given | fields)


def a_checkpoint(**fields: Any) -> Checkpoint:
    """Return the checkpoint of `a_run` with other fields."""
    (checkpoint,) = a_run().checkpoints
    return checkpoint.model_copy(update=fields)


def a_cell(**fields: Any) -> Cell:
    given: dict[str, Any] = {
        "model": "m",
        "weights": "d",
        "layer": 0,
        "kind": "attn",
        "candidate": "c",
        "dtype": "float32",
        "device": "cpu",
        "rotary_dim": 8,
        "case": "default",
        "seed": 0,
        "batch_size": 2,
        "seq_len": 8,
    }
    return Cell(**given | fields)


def a_finding(tap: str = "hook_z", stage: str = "mix", verdict: Verdict = Verdict.BITWISE, **fields: Any) -> Finding:
    given: dict[str, Any] = {"step": "forward", "r": 0.1, "candidate_error": 1e-7, "bits": 20.0}
    return Finding(**{"tap": tap, "stage": stage, "verdict": verdict, **given} | fields)


def a_result(*findings: Finding, silent_hooks: tuple[str, ...] = (), seconds: float = 1.0, **cell: Any) -> CellResult:
    """Return a result with the given findings, or with one that is bitwise."""
    return CellResult(
        cell=a_cell(**cell), findings=findings or (a_finding(),), silent_hooks=silent_hooks, seconds=seconds
    )


def a_run_folder(path: Path, *results: CellResult, run: Run | None = None) -> RunFolder:
    """Write a run with its results, planned in the given order, and leave its folder open."""
    plan = [PlannedCell(place=place, cell=result.cell) for place, result in enumerate(results)]
    folder = RunFolder.create(path, run or a_run(), plan)
    for result in results:
        folder.append(result)
    return folder
