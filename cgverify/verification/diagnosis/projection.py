"""Q, K and V: with which rows of the fused weight a projection was really computed."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from cgverify.observe.stages import WeightProduct
from cgverify.oracle.arithmetic import Expected, exact_input
from cgverify.oracle.fused_qkv import ORDER, PARTITIONS
from cgverify.oracle.product import product
from cgverify.verification.diagnosis.failed import Failed, TapEdit, unchanged
from cgverify.verification.diagnosis.heads import described, sources

OTHER_PARTITIONS = {1: "one partition", 2: "two partitions", 8: "eight partitions"}


def other_layout(broke: Failed) -> Iterator[str]:
    """The fused weight split as if it had another number of partitions than four."""
    which, _ = _projection(broke)
    if not which:
        return
    three = [broke.parameters.tensor(f"attn.{w}") for w in ORDER]
    fused = torch.stack([weight.reshape(PARTITIONS, -1, weight.shape[-1]) for weight in three], 1)
    for partitions, name in OTHER_PARTITIONS.items():
        if len(three[0]) % partitions == 0:
            split = fused.reshape(partitions, len(ORDER), -1, fused.shape[-1])[:, ORDER.index(which)].flatten(0, 1)
            if broke.agrees_with(unchanged, _replaced_by(split)):
                yield f"the fused weight is split as {name}, not four"


def _replaced_by(weight: torch.Tensor) -> TapEdit:
    return lambda _, __: weight


def other_rows(broke: Failed) -> Iterator[str]:
    """Each head computed with the rows of another projection, or of another head.

    Every head of the tap is held against every head of all three; a cause is named if each agrees with one of them.
    """
    which, source = _projection(broke)
    if not which:
        return
    own, heads = which.upper(), broke.parameters.n_heads
    others = {
        w.upper(): product(
            exact_input(broke.view[source]), broke.parameters.tensor(f"attn.{w}"), None, broke.parameters.shortcuts
        )
        for w in ORDER
        if w != which
    }
    by_heads = {name: _by_heads(would_be, heads) for name, would_be in {own: broke.answer, **others}.items()}
    found = sources(broke.tap.reshape(by_heads[own].value.shape), by_heads, axis=1)
    if found is not None:
        yield described(found, own)


def _projection(broke: Failed) -> tuple[str, str]:
    """Which of q, k and v a stage computes, and the tap that it starts from; empty if it is another stage."""
    oracle = broke.stage.oracle
    if isinstance(oracle, WeightProduct) and oracle.weight in {f"attn.{w}" for w in ORDER}:
        return oracle.weight.removeprefix("attn."), oracle.input
    return "", ""


def _by_heads(answer: Expected, heads: int) -> Expected:
    """`[tokens, heads, head_dim]`."""
    width = answer.value.numel() // (answer.value.shape[0] * answer.value.shape[1])
    shape = (-1, heads, width // heads)
    return Expected(answer.value.reshape(shape), answer.bound.reshape(shape), answer.dtype)
