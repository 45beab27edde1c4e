"""Verify some components of a checkpoint and select from what was found, for tests of the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cgverify.checkpoint.lookup import describe_checkpoint
from cgverify.checkpoint.prompt import prompt_for
from cgverify.checkpoint.resolve import resolve
from cgverify.common.process import only_new_objects_collected
from cgverify.common.records import Cell, CellResult, Finding, Prompt
from cgverify.observe.candidate import find_candidate
from cgverify.oracle.shortcuts import NO_SHORTCUTS, Shortcuts
from cgverify.plan.axes import Axes
from cgverify.plan.cases import PROMPTED
from cgverify.plan.cells import cells
from cgverify.verification.checkpoint_verifier import CheckpointVerifier
from cgverify.verification.judge import Judge, KeepTensors

THREE = ["default", "stress", "decode"]
"""Cases in which every stage is judged by its oracle."""

ALL_DTYPES = ["float64", "float32", "bfloat16", "float16"]


def nano_cells(axes: Axes, prompt: Prompt | None = None) -> list[Cell]:
    """Plan cells of codegen-nano."""
    checkpoint = describe_checkpoint("codegen-nano", "auto", resolve("codegen-nano"))
    return cells(checkpoint.model_copy(update={"prompt": prompt}), axes)


@only_new_objects_collected()
def verify(
    model: str | Path = "codegen-nano",
    *,
    prompt: Prompt | None = None,
    keep: KeepTensors | None = None,
    sentences: bool = False,
    shortcuts: Shortcuts = NO_SHORTCUTS,
    **axes: Any,
) -> list[CellResult]:
    """Verify a checkpoint in this process, by default layer 0 in the cases `THREE`.

    Args:
        sentences: whether what failed is explained, which takes more forwards.
    """
    source, asked = resolve(str(model)), Axes(**{"layers": [0], "cases": THREE, **axes})
    if prompt is None and set(asked.cases) & set(PROMPTED):
        prompt = prompt_for(str(model), source)
    candidates = {name: find_candidate(name) for name in asked.candidates}
    verifier = CheckpointVerifier(source, candidates, prompt, Judge(keep, sentences), shortcuts)
    return list(verifier.verify_all(nano_cells(asked, prompt)))


def findings(results: Sequence[CellResult]) -> Iterator[Finding]:
    return (finding for result in results for finding in result.findings)


def failed(results: Sequence[CellResult]) -> list[Finding]:
    return [finding for finding in findings(results) if finding.verdict.fails]


def of(results: Sequence[CellResult], **fields: Any) -> list[CellResult]:
    """Select the results whose cells have the given fields."""
    return [r for r in results if all(getattr(r.cell, name) == value for name, value in fields.items())]
