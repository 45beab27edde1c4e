"""Hugging Face's own modules with the processed weights of a bridge in compatibility mode.

Q, K, V and output then have biases, which CodeGen's do not have. Hugging Face's forward uses a bias that is there.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from cgverify.bridge.qkv_layout import join_features, join_weight
from cgverify.observe.components import COMPONENTS

SHARED_MODULES = ("embed", "ln1", "attn.o", "mlp.in", "mlp.out", "ln_final", "unembed")
"""The components that have one module with a weight on each side; q, k and v are one module on the reference's."""


def processed_reference(reference: nn.Module, bridge: nn.Module) -> nn.Module:
    """Return a copy of a one-block reference with the weights of a bridge of that block; its sin/cos table is kept.

    Only the weights of q, k and v are copied, because they are joined; all others are shared with the bridge.
    """
    model = copy.deepcopy(reference, {id(weight): weight for weight in reference.parameters()})
    for kind in SHARED_MODULES:
        component = COMPONENTS[kind]
        source = _wrapped(bridge, component.bridge_path)
        _set(model.get_submodule(component.reference_path), source.weight, getattr(source, "bias", None))
    projections = [_wrapped(bridge, COMPONENTS[f"attn.{w}"].bridge_path) for w in "qkv"]
    fused = model.get_submodule(f"{COMPONENTS['attn'].reference_path}.qkv_proj")
    _set(fused, join_weight(*(linear.weight.detach() for linear in projections)), _joined_bias(projections))
    return model


def _wrapped(bridge: nn.Module, path: str) -> Any:
    """Return the module that a component of a bridge wraps."""
    return cast(Any, bridge.get_submodule(path)).original_component


def _joined_bias(projections: Sequence[Any]) -> torch.Tensor | None:
    """Join the biases of q, k and v to `[3 * d_model]`; None if none of them has one."""
    if all(linear.bias is None for linear in projections):
        return None
    zeros = torch.zeros_like(projections[0].weight[:, 0])
    return join_features(*(zeros if linear.bias is None else linear.bias.detach() for linear in projections))


def _set(module: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    module.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias.detach(), requires_grad=False)
