"""Gradients of a component of either side, as taps: `grad.hidden_states`, `grad.attn.q`, `grad.mlp.in.bias`, …

They are of sum(output · G). The weights of q, k and v have one gradient `[3 * d_model, d_model]` in Hugging Face; the
bridge's three are joined into that layout, and both are then taken apart by the oracle's own count of its rows. A
weight that no gradient reaches has the gradient 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from cgverify.bridge import join_weight
from cgverify.oracle.fused_qkv import projection_weight

FUSED = "attn.qkv"

_NORM, _ATTENTION, _MLP = ("ln1",), (FUSED, "attn.o"), ("mlp.in", "mlp.out")

MODULES: dict[str, tuple[str, ...]] = {
    "ln1": _NORM,
    "attn": _ATTENTION,
    "attn.o": ("attn.o",),
    "mlp": _MLP,
    "mlp.in": ("mlp.in",),
    "mlp.out": ("mlp.out",),
    "block": _NORM + _ATTENTION + _MLP,
}
"""By kind of component: the modules whose weights have gradients, by names of a block."""

_REFERENCE = {
    "ln1": "ln_1",
    FUSED: "attn.qkv_proj",
    "attn.o": "attn.out_proj",
    "mlp.in": "mlp.fc_in",
    "mlp.out": "mlp.fc_out",
}

Weights = dict[str, tuple[nn.Parameter, ...]]
"""By name; three for the fused weight of a bridge, q, k and v."""


def reference_weights(block: nn.Module, kind: str) -> Weights:
    """Those of a Hugging Face block."""
    return {
        name: (weight,) for each in MODULES[kind] for name, weight in _own(each, block.get_submodule(_REFERENCE[each]))
    }


def candidate_weights(block: Any, kind: str) -> Weights:
    """Those of a bridge of a block."""
    found: Weights = {}
    for each in MODULES[kind]:
        if each == FUSED:
            found[FUSED] = tuple(block.get_submodule(f"attn.{w}").original_component.weight for w in "qkv")
        else:
            found |= {name: (weight,) for name, weight in _own(each, block.get_submodule(each).original_component)}
    return found


def _own(name: str, module: Any) -> Iterator[tuple[str, nn.Parameter]]:
    yield name, module.weight
    if module.bias is not None:
        yield f"{name}.bias", module.bias


@contextmanager
def recorded(weights: Weights) -> Iterator[None]:
    """Have autograd record what becomes of the weights, and leave them as they were."""
    before = [(weight, weight.requires_grad) for parts in weights.values() for weight in parts]
    for weight, _ in before:
        weight.requires_grad_()
    try:
        yield
    finally:
        for weight, required in before:
            weight.requires_grad_(required)


def taps(
    output: torch.Tensor, cotangent: torch.Tensor, leaf: torch.Tensor, weights: Weights, n_heads: int
) -> Mapping[str, torch.Tensor]:
    """The gradients of sum(output · cotangent), by tap."""
    names = [name for name, parts in weights.items() for _ in parts]
    leaves = [weight for parts in weights.values() for weight in parts]
    found = torch.autograd.grad(output, [leaf, *leaves], cotangent, allow_unused=True, materialize_grads=True)
    gradients: dict[str, list[torch.Tensor]] = {}
    for name, gradient in zip(names, found[1:], strict=True):
        gradients.setdefault(name, []).append(gradient)
    by_name = {"hidden_states": found[0]}
    for name, parts in gradients.items():
        by_name |= _apart(parts, n_heads) if name == FUSED else {name: parts[0]}
    return {f"grad.{name}": gradient for name, gradient in by_name.items()}


def _apart(parts: Sequence[torch.Tensor], n_heads: int) -> dict[str, torch.Tensor]:
    """By head: `[heads, head_dim, d_model]` each."""
    fused = parts[0] if len(parts) == 1 else join_weight(*parts)
    return {f"attn.{w}": projection_weight(fused, w, n_heads).unflatten(0, (n_heads, -1)) for w in "qkv"}
