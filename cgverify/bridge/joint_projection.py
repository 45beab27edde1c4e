"""Compute q, k and v by one product instead of three.

With a single token, the time is that of reading the weights, and one long read takes less than three short ones. In
half precision, starting a product takes as long as computing it for a few tokens. So the weights of the three Linears
are moved next to each other. Each Linear still owns its weight and may be given another, so every call checks that the
weights are still adjacent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformer_lens.model_bridge.generalized_components import LinearBridge

from cgverify.bridge.fast_path import is_transformed, runs_only_forward
from cgverify.bridge.huge_pages import weight_buffer

_HALF = (torch.bfloat16, torch.float16)
_DENSE = (nn.Parameter, Tensor)


@torch.no_grad()
def make_adjacent(linears: Sequence[nn.Module]) -> None:
    """Move the weights of plain Linears of one shape next to each other, in order, unless processes share them."""
    weights = [linear.weight for linear in linears if type(linear) is nn.Linear]
    if any(weight.device.type == "cpu" and weight.is_shared() for weight in weights):
        return
    if len(weights) == len(linears) and len({(w.shape, w.dtype, w.device) for w in weights}) == 1:
        rows, width = weights[0].shape
        out = weight_buffer(len(weights) * rows, width, like=weights[0])
        joined = torch.cat([weight.detach() for weight in weights], out=out)
        for weight, part in zip(weights, joined.chunk(len(weights)), strict=True):
            weight.data = part


def project_jointly(bridges: Sequence[Any], hidden_states: Tensor) -> tuple[Tensor, ...] | None:
    """Return what each bridge of a Linear makes of `[batch, seq, width]`, as views of the result of one product.

    None if that would have other bits or effects, or would not be faster: several tokens in float32; float64, in which
    the last bit differs; a hook; a module that is not a plain Linear or whose forward was replaced; a weight that needs
    its own gradient or tangent.
    """
    if is_transformed():  # sizes may be tensors
        return None
    one_token = hidden_states.numel() == hidden_states.shape[-1]
    faster = hidden_states.dtype in _HALF or (one_token and hidden_states.dtype == torch.float32)
    if not faster or any(type(bridge) is not LinearBridge for bridge in bridges):
        return None
    if not runs_only_forward(*bridges, *(module for bridge in bridges for module in bridge._modules.values())):
        return None
    weight = joint_weight([bridge._modules["_original_component"] for bridge in bridges])
    return None if weight is None else functional.linear(hidden_states, weight).chunk(len(bridges), dim=-1)


def joint_weight(linears: Sequence[nn.Module]) -> Tensor | None:
    """Return the weights as one, `[len(linears) * out, in]`, if they are adjacent and none needs a gradient."""
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
    return (first.detach() if differentiated else first).as_strided((len(linears) * shape[0], shape[1]), (shape[1], 1))
