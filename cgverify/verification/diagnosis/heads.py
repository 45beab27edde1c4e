"""Heads that have what belongs to other heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from cgverify.oracle.arithmetic import Expected
from cgverify.oracle.fused_qkv import PARTITIONS
from cgverify.verification.diagnosis.extent import indices_named, listed
from cgverify.verification.diagnosis.failed import Failed

MOST_NAMED = 3

Source = tuple[str, int]
"""Where a head's values come from: the tensor, by a name, and the head in it."""


def other_heads(broke: Failed) -> Iterator[str]:
    """The stage computed rightly, and the heads of its tap in another order."""
    axes = broke.stage.axes
    if "head" in axes and broke.tap.dim() == len(axes):
        axis = axes.index("head")
        found = sources(broke.tap, {"": broke.answer}, axis)
        if found is not None:
            yield described(found, "")


def sources(tap: torch.Tensor, tensors: Mapping[str, Expected], axis: int) -> list[Source] | None:
    """For each head of a tap, the tensor and head that it agrees with; None if one of them agrees with nothing.

    Args:
        tap: with heads along `axis`.
        tensors: of its shape, by name, the tap's own first. What is nearer to where it belongs comes first: the head
            itself, the same head of another tensor, another head.
    """
    mine = _head_by_head(tap.to(torch.float64), axis)
    theirs = {name: (_head_by_head(t.value, axis), _head_by_head(t.bound, axis)) for name, t in tensors.items()}
    found = []
    for head, values in enumerate(mine):
        agreeing = {name: ((values - value).abs() <= bound).all(-1) for name, (value, bound) in theirs.items()}
        same = [(name, head) for name, agrees in agreeing.items() if agrees[head]]
        other = [(name, int(agrees.nonzero()[0])) for name, agrees in agreeing.items() if agrees.any()]
        if not same and not other:
            return None
        found.append((same or other)[0])
    return found


def described(found: Sequence[Source], own: str) -> str:
    """What heads that belong to the tensor `own` have instead, in words."""
    wrong = [head for head, source in enumerate(found) if source != (own, head)]
    names = {found[head][0] for head in wrong}
    if len(names) == 1 and own not in names and all(found[head][1] == head for head in wrong):
        (name,) = names
        where = "" if len(wrong) == len(found) else f" in {indices_named('head', wrong, len(found))}"
        return f"{name} stands in the place of {own}{where}"
    if names == {own} and (order := _order_of_partitions([head for _, head in found])):
        return f"partitions are permuted: {listed(order)} stand where {listed(range(PARTITIONS))} belong"
    if names == {own} and sorted(head for _, head in found) == list(range(len(found))):
        if len(wrong) == 2:
            return f"heads {listed(wrong)} have changed places"
        return "heads stand in another order"
    named = [(head, *found[head]) for head in wrong[:MOST_NAMED]]
    told = [f"head {head} has what belongs to head {other}{_of(name)}" for head, name, other in named]
    return listed(told) if len(wrong) <= MOST_NAMED else f"{', '.join(told)} and so on"


def _of(name: str) -> str:
    return f" of {name}" if name else ""


def _order_of_partitions(heads: Sequence[int]) -> list[int]:
    """Which partition stands in the place of each, where only whole partitions have moved."""
    each, rest = divmod(len(heads), PARTITIONS)
    if rest or not each:
        return []
    order = [heads[start] // each for start in range(0, len(heads), each)]
    whole = [partition * each + place for partition in order for place in range(each)]
    return order if whole == list(heads) and sorted(order) == list(range(PARTITIONS)) else []


def _head_by_head(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """`[heads, elements]`."""
    moved = tensor.movedim(axis, 0)
    return moved.reshape(len(moved), -1)
