"""Where in a tensor something is, in words: `head 3 from position 1 on`, `all heads of the last partition`.

The phrase is composed axis by axis from the whole tensor. Suppose a tap `[batch, position, head, dimension]` with 2
rows, 8 positions and 8 heads is broken for head 3 in both rows at positions 1 to 7. Then the broken heads are {3} of 8
and the broken positions {1, …, 7} of 8. An axis that is broken throughout is not mentioned, except that `all heads` is
said if another axis is mentioned.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cgverify.oracle.fused_qkv import PARTITIONS

MOST_LISTED = 3
DENSE = 0.9
"""Above this share of broken elements in the named places, the share is not mentioned."""

ORDINALS = ("first", "second", "third", "last")


def extent(broken: torch.Tensor, axes: tuple[str, ...]) -> str:
    """Say where `broken`, boolean and with the named axes, is True. Empty if that is everywhere or nowhere."""
    if broken.dim() != len(axes) or not bool(broken.any()):
        return ""
    places = broken.nonzero()
    indices_of = {axis: places[:, i].unique().tolist() for i, axis in enumerate(axes)}
    sizes = dict(zip(axes, broken.shape, strict=True))
    named = {
        axis: name_indices(axis, indices, sizes[axis])
        for axis, indices in indices_of.items()
        if len(indices) < sizes[axis]
    }
    where = _joined(named, sizes)
    box = 1
    for indices in indices_of.values():
        box *= len(indices)
    share = len(places) / box
    if share >= DENSE:
        return where
    return f"{100 * share:.2g}% of the elements" + (f" of {where}" if where else "")


def name_indices(axis: str, indices: Sequence[int], total: int) -> str:
    """Name some indices of an axis, given in ascending order: `heads 0 and 1`, `from position 4 on`."""
    first, last = indices[0], indices[-1]
    unbroken = last - first + 1 == len(indices)
    if axis == "head" and (partition := _partitions(indices, total)):
        return partition
    if len(indices) == 1:
        return f"{axis} {first} only" if axis == "batch" else f"{axis} {first}"
    if unbroken and axis in ("position", "key"):
        keys = "keys " if axis == "key" else ""
        if last == total - 1:
            return f"{keys}from position {first} on"
        if first == 0:
            return f"{keys}before position {last + 1}"
    if len(indices) == total - 1 and axis != "dimension":
        (left_out,) = set(range(total)) - set(indices)
        return f"all {_plural(axis)} but {left_out}"
    if unbroken:
        return f"{_plural(axis)} {first} to {last}" if len(indices) > 2 else f"{_plural(axis)} {first} and {last}"
    if len(indices) <= MOST_LISTED:
        return f"{_plural(axis)} {listed(indices)}"
    return f"{len(indices)} of {total} {_plural(axis)}"


def _partitions(heads: Sequence[int], total: int) -> str:
    """Name the partitions of the fused weight that the heads make up; empty if they are not whole partitions."""
    each, rest = divmod(total, PARTITIONS)
    partitions = sorted({head // each for head in heads}) if each else []
    if rest or each == 1 or len(partitions) * each != len(heads):
        return ""
    if len(partitions) == 1:
        return f"all heads of the {ORDINALS[partitions[0]]} partition"
    return f"all heads of partitions {listed(partitions)}"


def _joined(named: dict[str, str], sizes: dict[str, int]) -> str:
    """Join the phrases of the axes, heads first."""
    words = [named[axis] for axis in ("head", "position", "key", "dimension", "batch") if axis in named]
    if "head" in named:
        return ", ".join(words).replace(", from", " from").replace(", before", " before")
    words = ["all but the first position" if each == "from position 1 on" else each for each in words]
    return ", ".join(["all heads", *words] if words and sizes.get("head", 1) > 1 else words)


def listed(things: Sequence[object]) -> str:
    """Join things as `a`, `a and b`, `a, b and c`."""
    *before, last = map(str, things)
    return f"{', '.join(before)} and {last}" if before else last


def _plural(axis: str) -> str:
    return {"batch": "rows"}.get(axis, f"{axis}s")
