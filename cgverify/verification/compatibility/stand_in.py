"""Hugging Face's own modules with the weights of a bridge in compatibility mode: what such a bridge can be held to.

Its Q, K, V and output have biases, which CodeGen's have not; Hugging Face's forward asks nobody about them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from cgverify.bridge.qkv_layout import join_features, join_weight

MODULES = {
    "transformer.wte": "embed",
    "transformer.h.0.ln_1": "blocks.0.ln1",
    "transformer.h.0.attn.out_proj": "blocks.0.attn.o",
    "transformer.h.0.mlp.fc_in": "blocks.0.mlp.in",
    "transformer.h.0.mlp.fc_out": "blocks.0.mlp.out",
    "transformer.ln_f": "ln_final",
    "lm_head": "unembed",
}
"""Hugging Face's names in a model of one block, and the bridge's."""


def stand_in(reference: nn.Module, bridge: nn.Module) -> nn.Module:
    """A copy of a reference of one block, with the weights of a bridge of that block and the reference's sin/cos table.

    No weight is copied but q, k and v, which are joined.
    """
    model = copy.deepcopy(reference, {id(weight): weight for weight in reference.parameters()})
    for theirs, ours in MODULES.items():
        source = cast(Any, bridge.get_submodule(ours)).original_component
        _give(model.get_submodule(theirs), source.weight, getattr(source, "bias", None))
    attention = bridge.get_submodule("blocks.0.attn")
    apart = [cast(Any, attention.get_submodule(w)).original_component for w in "qkv"]
    fused = model.get_submodule("transformer.h.0.attn.qkv_proj")
    _give(fused, join_weight(*(linear.weight.detach() for linear in apart)), _joined_bias(apart))
    return model


def _joined_bias(apart: Sequence[Any]) -> torch.Tensor | None:
    """Of q, k and v, `[3 * d_model]`; None where none of them has one."""
    if all(linear.bias is None for linear in apart):
        return None
    nothing = torch.zeros_like(apart[0].weight[:, 0])
    return join_features(*(nothing if linear.bias is None else linear.bias.detach() for linear in apart))


def _give(module: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    module.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias.detach(), requires_grad=False)
