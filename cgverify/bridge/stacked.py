"""Three Linears whose weights lie one behind the other, so that one product can serve all three.

A single token is bound by the time to read the weights, and one long read takes less than three; in half precision the
start of a product costs as much as a few tokens' share of it. The Linears stay what
they are: each owns its weight, and whether the weights still lie so is asked anew each time, since anybody may give one
of them another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformer_lens.model_bridge.generalized_components import LinearBridge

from cgverify.bridge.listeners import is_changed, is_heard, is_transformed
from cgverify.bridge.scratch import lasting

_HALF = (torch.bfloat16, torch.float16)
_DENSE = (nn.Parameter, torch.Tensor)


@torch.no_grad()
def stack(linears: Sequence[nn.Module]) -> None:
    """Move the weights of plain Linears of one shape into one piece of memory, in order, unless it is shared."""
    weights = [linear.weight for linear in linears if type(linear) is nn.Linear]
    if any(weight.device.type == "cpu" and weight.is_shared() for weight in weights):
        return
    if len(weights) == len(linears) and len({(w.shape, w.dtype, w.device) for w in weights}) == 1:
        rows, width = weights[0].shape
        room = lasting(len(weights) * rows, width, like=weights[0])
        together = torch.cat([weight.detach() for weight in weights], out=room)
        for weight, place in zip(weights, together.chunk(len(weights)), strict=True):
            weight.data = place


def project_together(projections: Sequence[Any], rows: torch.Tensor) -> tuple[torch.Tensor, ...] | None:
    """What bridges of Linears make of `[batch, seq, width]`, by one product; the parts are views of its result.

    None where that is not the same, or not sooner: more than one row in float32, where three products are as quick;
    somebody listening; other modules than plain Linears, or with a forward of their own; float64, in which the last bit
    differs; gradients or tangents that a weight must get for itself.
    """
    alone = rows.numel() == rows.shape[-1]
    if not (rows.dtype in _HALF or (alone and rows.dtype == torch.float32)) or is_transformed():
        return None
    linears = [one._modules["_original_component"] for one in projections if type(one) is LinearBridge]
    weight = _stacked_weight(linears) if len(linears) == len(projections) else None
    if weight is None:
        return None
    for projection, linear in zip(projections, linears, strict=True):
        points = projection._modules
        for module in (projection, linear, points["hook_in"], points["hook_out"]):
            if is_heard(module) or is_changed(module):
                return None
    return functional.linear(rows, weight).chunk(len(linears), dim=-1)


def _stacked_weight(linears: Sequence[nn.Module]) -> torch.Tensor | None:
    """The weights as one, `[len(linears) * out, in]`, if they are one piece of memory and none wants a gradient."""
    first = linears[0]._parameters.get("weight")
    if first is None or type(first) not in _DENSE or first.device.type == "meta":
        return None
    differentiated = torch.is_grad_enabled()
    shape, size = first.shape, first.numel() * first.element_size()
    if first.storage_offset() * first.element_size() + len(linears) * size > first.untyped_storage().nbytes():
        return None
    expected = first.data_ptr()
    for linear in linears:
        weight = linear._parameters.get("weight")
        if (
            type(linear) is not nn.Linear
            or linear._parameters["bias"] is not None
            or weight is None
            or type(weight) not in _DENSE
            or (differentiated and weight.requires_grad)
            or weight.data_ptr() != expected
            or weight.shape != shape
            or weight.dtype != first.dtype
            or not weight.is_contiguous()
        ):
            return None
        expected += size
    return first.detach().as_strided((len(linears) * shape[0], shape[1]), (shape[1], 1))
