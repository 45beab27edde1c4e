"""The known cause of a failed tap, where there is one: each is a hypothesis that is computed, never guessed.

A hypothesis says what the tap would be if the side had made one certain mistake, computed in float64 from the taps
that the side really had. It is accepted only if the tap holds the bound of that computation.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from cgverify.checking import ObservedStep
from cgverify.judge import assess
from cgverify.oracle.arithmetic import Expected, observed, rounded
from cgverify.oracle.fused_qkv import PARTITIONS
from cgverify.oracle.parameters import Parameters
from cgverify.oracle.product import product
from cgverify.oracle.rope import rope
from cgverify.oracle.scores import scores
from cgverify.records import Finding, Verdict
from cgverify.stages import Product, Stage, View

Hypothesis = tuple[str, Expected]
SHIFTS = (-2, -1, 1, 2)


def with_causes(findings: list[Finding], step: ObservedStep, parameters: Parameters) -> list[Finding]:
    """The findings of a step, each that failed by a known cause with its name."""
    stages = {(stage.name, stage.tap): stage for stage in step.stages}
    explained = []
    for finding in findings:
        stage = stages.get((finding.stage, finding.tap))
        cause = ""
        if stage is not None and finding.verdict is Verdict.DIVERGED:
            cause = cause_of(stage, step.candidate.view, parameters)
        update = {"cause": cause, "message": f"{finding.message}; cause: {cause}"}
        explained.append(finding.model_copy(update=update) if cause else finding)
    return explained


def cause_of(stage: Stage, view: View, parameters: Parameters) -> str:
    """The first hypothesis that the tap holds the bound of, else nothing."""
    tap = view[stage.tap]
    try:
        for name, would_be in _hypotheses(stage, view, parameters):
            if tap.numel() == would_be.value.numel() and assess(tap, would_be)[0].value <= 1:
                return name
    except (KeyError, RuntimeError):  # a candidate's taps may be absent, and of any shape
        return ""
    return ""


def _hypotheses(stage: Stage, view: View, parameters: Parameters) -> Iterator[Hypothesis]:
    if isinstance(stage.oracle, Product):
        if stage.oracle.weight in ("attn.q", "attn.k", "attn.v") and stage.oracle.input in view:
            yield from _other_rows(stage.oracle.weight[-1], view[stage.oracle.input], parameters)
    elif stage.name == "scores":
        yield from _other_mask(stage, view)
    elif stage.name == "rope":
        source = view.get(stage.tap.replace("hook_rot_", "hook_"))
        if source is not None:
            yield from _other_positions(source, view["given.position_ids"], parameters.tensor("attn.table"))


def _other_mask(stage: Stage, view: View) -> Iterator[Hypothesis]:
    """The scores with the mask added to what is scaled already; one more rounding of the sum. Not with a cache."""
    prefix = stage.tap.removesuffix("hook_attn_scores")
    query, key = (view.get(f"{prefix}hook_rot_{which}") for which in "qk")
    mask = view.get("given.attention_mask")
    if query is None or key is None or mask is None or f"{prefix}cache_keys" in view:
        return
    plain = scores(observed(query.transpose(1, 2)), observed(key.transpose(1, 2)), None)
    value = plain.value + mask.to(torch.float64)
    yield "mask after scaling", Expected(value, rounded(value, plain.bound, plain.dtype), plain.dtype)


def _other_rows(which: str, x: torch.Tensor, parameters: Parameters) -> Iterator[Hypothesis]:
    """The projection with the weight of another one, or as one partition has it."""
    weights = {name: parameters.tensor(f"attn.{name}") for name in "qvk"}
    for other, weight in weights.items():
        if other != which:
            yield f"{other.upper()} stands in the place of {which.upper()}", product(observed(x), weight)
    parts = [weight.reshape(PARTITIONS, -1, weight.shape[-1]) for weight in weights.values()]
    fused = torch.stack(parts, 1).reshape(3, *weights["q"].shape)
    yield "the fused weight is split as one partition, not four", product(observed(x), fused["qvk".index(which)])


def _other_positions(x: torch.Tensor, positions: torch.Tensor, table: torch.Tensor) -> Iterator[Hypothesis]:
    """The rotation as if the positions were shifted (held within the table), or not done at all."""
    for shift in SHIFTS:
        yield f"positions shifted by {shift:+d}", rope(x, table, (positions + shift).clamp(0, len(table) - 1))
    yield "not rotated", observed(x)
