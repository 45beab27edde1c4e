"""Rows of the fused weight, or heads of a tap, that belong to another projection or another head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch

from cgverify.observe.stages import WeightProduct
from cgverify.oracle.arithmetic import Expected, exact_input
from cgverify.oracle.fused_qkv import ORDER, PARTITIONS
from cgverify.oracle.product import product
from cgverify.verification.diagnosis.extent import listed, name_indices
from cgverify.verification.diagnosis.mismatch import Mismatch, unchanged

OTHER_PARTITIONS = {1: "one partition", 2: "two partitions", 8: "eight partitions"}
MOST_NAMED = 3

HeadSource = tuple[str, int]
"""Where the values of a head come from: the name of a tensor, and a head of it."""


def other_layout(mismatch: Mismatch) -> Iterator[str]:
    """Hypothesis: the fused weight is split as if it had another number of partitions than four."""
    which, _ = _projection(mismatch)
    if not which:
        return
    weights = [mismatch.parameters.tensor(f"attn.{w}") for w in ORDER]
    fused = torch.stack([weight.reshape(PARTITIONS, -1, weight.shape[-1]) for weight in weights], 1)
    for partitions, name in OTHER_PARTITIONS.items():
        if len(weights[0]) % partitions == 0:
            split = fused.reshape(partitions, len(ORDER), -1, fused.shape[-1])[:, ORDER.index(which)].flatten(0, 1)
            if mismatch.agrees_with(unchanged, partial(_replaced, split)):
                yield f"the fused weight is split as {name}, not four"


def other_rows(mismatch: Mismatch) -> Iterator[str]:
    """Hypothesis: each head is computed with the rows of another projection, or of another head.

    Every head of the tap is compared with every head of q, k and v; each must agree with one of them.
    """
    which, source = _projection(mismatch)
    if not which:
        return
    own, heads = which.upper(), mismatch.parameters.n_heads
    x, shortcuts = exact_input(mismatch.tensors[source]), mismatch.parameters.shortcuts
    projections = {own: mismatch.expected}
    for w in ORDER:
        if w != which:
            projections[w.upper()] = product(x, mismatch.parameters.tensor(f"attn.{w}"), None, shortcuts)
    by_head = {name: _by_head(expected, heads) for name, expected in projections.items()}
    found = head_sources(mismatch.tap.reshape(by_head[own].value.shape), by_head, axis=1)
    if found is not None:
        yield describe_sources(found, own)


def other_heads(mismatch: Mismatch) -> Iterator[str]:
    """Hypothesis: the stage is computed correctly, and the heads of its tap are in another order."""
    axes = mismatch.stage.axes
    if "head" in axes and mismatch.tap.dim() == len(axes):
        found = head_sources(mismatch.tap, {"": mismatch.expected}, axes.index("head"))
        if found is not None:
            yield describe_sources(found, "")


def _replaced(by: torch.Tensor, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return another weight; a bias, which q, k and v have in compatibility mode, stays."""
    return tensor if name.endswith(".bias") else by


def _projection(mismatch: Mismatch) -> tuple[str, str]:
    """Return which of q, k and v a stage computes and the tap that it starts from; empty for any other stage."""
    oracle = mismatch.stage.oracle
    if isinstance(oracle, WeightProduct) and oracle.weight in {f"attn.{w}" for w in ORDER}:
        return oracle.weight.removeprefix("attn."), oracle.input
    return "", ""


def _by_head(expected: Expected, heads: int) -> Expected:
    """Reshape a projection to `[tokens, heads, head_dim]`."""
    width = expected.value.numel() // (expected.value.shape[0] * expected.value.shape[1])
    shape = (-1, heads, width // heads)
    return Expected(expected.value.reshape(shape), expected.bound.reshape(shape), expected.dtype)


def head_sources(tap: torch.Tensor, tensors: Mapping[str, Expected], axis: int) -> list[HeadSource] | None:
    """Return the tensor and head that each head of a tap agrees with; None if one of them agrees with none.

    Args:
        tap: with heads along `axis`.
        tensors: of the tap's shape, by name, the tap's own first. The head itself is preferred, then the same head of
            another tensor, then another head.
    """
    values = _heads_first(tap.to(torch.float64), axis)
    candidates = {name: (_heads_first(t.value, axis), _heads_first(t.bound, axis)) for name, t in tensors.items()}
    found = []
    for head, own in enumerate(values):
        agreeing = {name: ((own - value).abs() <= bound).all(-1) for name, (value, bound) in candidates.items()}
        same = [(name, head) for name, agrees in agreeing.items() if agrees[head]]
        other = [(name, int(agrees.nonzero()[0])) for name, agrees in agreeing.items() if agrees.any()]
        if not same and not other:
            return None
        found.append((same or other)[0])
    return found


def _heads_first(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """Reshape to `[heads, elements]`."""
    moved = tensor.movedim(axis, 0)
    return moved.reshape(len(moved), -1)


def describe_sources(found: Sequence[HeadSource], own: str) -> str:
    """Say where the heads of the tensor `own` come from."""
    wrong = [head for head, source in enumerate(found) if source != (own, head)]
    names = {found[head][0] for head in wrong}
    if len(names) == 1 and own not in names and all(found[head][1] == head for head in wrong):
        (name,) = names
        where = "" if len(wrong) == len(found) else f" in {name_indices('head', wrong, len(found))}"
        return f"{name} stands in the place of {own}{where}"
    if names == {own} and (order := _order_of_partitions([head for _, head in found])):
        return f"partitions are permuted: {listed(order)} stand where {listed(range(PARTITIONS))} belong"
    if names == {own} and sorted(head for _, head in found) == list(range(len(found))):
        return f"heads {listed(wrong)} have changed places" if len(wrong) == 2 else "heads stand in another order"
    named = [
        f"head {head} has what belongs to head {found[head][1]}" + (f" of {found[head][0]}" if found[head][0] else "")
        for head in wrong[:MOST_NAMED]
    ]
    return listed(named) if len(wrong) <= MOST_NAMED else f"{', '.join(named)} and so on"


def _order_of_partitions(heads: Sequence[int]) -> list[int]:
    """Return the partition that is in the place of each; empty if anything but whole partitions has moved."""
    each, rest = divmod(len(heads), PARTITIONS)
    if rest or not each:
        return []
    order = [heads[start] // each for start in range(0, len(heads), each)]
    whole = [partition * each + place for partition in order for place in range(each)]
    return order if whole == list(heads) and sorted(order) == list(range(PARTITIONS)) else []
