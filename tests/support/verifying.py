"""What tests of the verdict share: verify some components of a checkpoint, and ask what was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cgverify.checkpoint.prompt import prompt_for
from cgverify.checkpoint.resolve import resolve
from cgverify.common.records import CellResult, Finding, Prompt
from cgverify.observe.candidate import find_candidate
from cgverify.plan.cells import PROMPTED, Axes, CheckpointShape, cells
from cgverify.verification.checkpoint_verifier import CheckpointVerifier
from cgverify.verification.judge import Judge, KeepTensors

ALL_DTYPES = ["float64", "float32", "bfloat16", "float16"]


def verify(
    model: str = "codegen-nano", *, prompt: Prompt | None = None, keep: KeepTensors | None = None, **axes: Any
) -> list[CellResult]:
    """Verify layer 0 (unless told otherwise) of a checkpoint."""
    source = resolve(model)
    config = source.config
    subject = CheckpointShape(model, source.digest, config.n_layer, config.rotary_dim, config.n_positions)
    asked = Axes(**{"layers": [0], **axes})
    if prompt is None and set(asked.cases) & set(PROMPTED):
        prompt = prompt_for(model, source)
    candidates = {name: find_candidate(name) for name in asked.candidates}
    return list(CheckpointVerifier(source, candidates, prompt, Judge(keep)).verify_all(cells(subject, asked, prompt)))


def findings(results: Sequence[CellResult]) -> Iterator[Finding]:
    return (finding for result in results for finding in result.findings)


def failed(results: Sequence[CellResult]) -> list[Finding]:
    return [finding for finding in findings(results) if finding.verdict.fails]
