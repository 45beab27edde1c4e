"""Three Linears whose weights lie one behind the other, so that one product can serve all three.

A single token is bound by the time to read the weights, and one long read takes less than three. The Linears stay what
they are: each owns its weight, and whether the weights still lie so is asked anew each time, since anybody may give one
of them another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from cgverify.bridge.listeners import is_heard


@torch.no_grad()
def stack(linears: Sequence[nn.Module]) -> None:
    """Move the weights of plain Linears of one shape into one piece of memory, in order."""
    weights = [linear.weight for linear in linears if type(linear) is nn.Linear]
    if len(weights) == len(linears) and len({(w.shape, w.dtype, w.device) for w in weights}) == 1:
        together = torch.cat([weight.detach() for weight in weights])
        for weight, place in zip(weights, together.chunk(len(weights)), strict=True):
            weight.data = place


def project_row(projections: Sequence[Any], row: torch.Tensor) -> tuple[torch.Tensor, ...] | None:
    """What bridges of Linears make of a single row, `[1, 1, width]`, by one product.

    None where that is not the same: more rows, which would come out in another memory layout; somebody listening; other
    modules than plain Linears; float64, in which the last bit differs; gradients that each weight must get for itself.
    """
    if row.numel() != row.shape[-1] or row.dtype == torch.float64 or torch.compiler.is_compiling():
        return None
    linears = [projection._modules["_original_component"] for projection in projections]
    weight = _stacked_weight(linears)
    if weight is None or (torch.is_grad_enabled() and linears[0].weight.requires_grad):
        return None
    points = (projection._modules[name] for projection in projections for name in ("hook_in", "hook_out"))
    if any(is_heard(module) or "_hf_hook" in module.__dict__ for module in (*projections, *linears, *points)):
        return None
    return functional.linear(row, weight).chunk(len(linears), dim=-1)


def _stacked_weight(linears: Sequence[nn.Module]) -> torch.Tensor | None:
    """The weights as one, `[len(linears) * out, in]`, if they are one piece of memory."""
    first = linears[0]._parameters.get("weight")
    if first is None or first.device.type == "meta":
        return None
    storage, offset = first.untyped_storage().data_ptr(), first.storage_offset()
    for linear in linears:
        weight = linear._parameters.get("weight")
        if (
            type(linear) is not nn.Linear
            or linear.bias is not None
            or weight is None
            or weight.untyped_storage().data_ptr() != storage
            or weight.storage_offset() != offset
            or weight.shape != first.shape
            or not weight.is_contiguous()
        ):
            return None
        offset += first.numel()
    rows, columns = first.shape
    return first.detach().as_strided((len(linears) * rows, columns), (columns, 1))
