"""Gradients of a component of either side, as taps: `grad.hidden_states`, `grad.attn.q`, `grad.mlp.in.bias`, …

They are those of sum(output · G). The weights of q, k and v have one gradient `[3 * d_model, d_model]` in Hugging Face.
The bridge's three are joined into that layout, and the oracle splits both by its own count of the rows. A weight that
no gradient reaches has the gradient 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from cgverify.bridge import join_weight
from cgverify.observe.conditions import Cotangent
from cgverify.observe.fault import calls_a_side
from cgverify.observe.taps import Observation, cpu_copy
from cgverify.oracle.fused_qkv import projection

_REFERENCE = {
    "ln1": "ln_1",
    "attn.qkv": "attn.qkv_proj",
    "attn.o": "attn.out_proj",
    "mlp.in": "mlp.fc_in",
    "mlp.out": "mlp.fc_out",
}
"""The modules of a Hugging Face block whose weights have gradients."""

_PROJECTIONS = ("attn.q", "attn.k", "attn.v")


def modules_with_gradients(kind: str) -> tuple[str, ...]:
    """Return the bridge's modules in a kind of component whose weights have gradients, by names of a block."""
    every = ("ln1", *_PROJECTIONS, "attn.o", "mlp.in", "mlp.out")
    return tuple(name for name in every if kind in ("block", name) or name.startswith(f"{kind}."))


def reference_weights(block: nn.Module, kind: str) -> dict[str, nn.Parameter]:
    """Return the weights of a component of a Hugging Face block that have gradients, by name; q, k and v as one."""
    names = ["attn.qkv" if name in _PROJECTIONS else name for name in modules_with_gradients(kind)]
    return _weights({name: block.get_submodule(_REFERENCE[name]) for name in names})


@calls_a_side
def candidate_weights(block: nn.Module, kind: str) -> dict[str, nn.Parameter]:
    """Return the weights of a component of a bridge of a block that have gradients, by name."""
    nodes: dict[str, Any] = {name: block.get_submodule(name) for name in modules_with_gradients(kind)}
    return _weights({name: node.original_component for name, node in nodes.items()})


@calls_a_side
def _weights(modules: dict[str, Any]) -> dict[str, nn.Parameter]:
    found: dict[str, nn.Parameter] = {}
    for name, module in modules.items():
        found[name] = module.weight
        if getattr(module, "bias", None) is not None:
            found[f"{name}.bias"] = module.bias
    return found


@calls_a_side
def call_and_differentiate(
    call: Callable[[dict[str, Any]], Any],
    inputs: dict[str, Any],
    weights: dict[str, nn.Parameter],
    n_heads: int,
    cotangent: Cotangent,
    observation: Observation,
    shown: Mapping[str, torch.Tensor],
) -> tuple[Any, list[str]]:
    """Call a component and record the gradients of sum(output · cotangent) in the hidden states and the weights.

    Whether the weights require gradients is restored.

    Args:
        shown: the tensors that hooks received, by path, once the component has been called.

    Returns:
        What the component returned, and the tensors in `shown` that require a gradient and get none.
    """
    leaf = inputs["hidden_states"].detach().clone().requires_grad_()
    before = {name: weight.requires_grad for name, weight in weights.items()}
    for weight in weights.values():
        weight.requires_grad_()
    try:
        returned = call(inputs | {"hidden_states": leaf})
        observation.forward_done = True
        output = returned[0] if isinstance(returned, tuple) else returned
        leaves = {"hidden_states": leaf, **weights}
        attached = {name: tensor for name, tensor in shown.items() if tensor.requires_grad}
        # torch returns the gradient of a tensor that is named twice only once.
        targets = {id(tensor): tensor for tensor in (*leaves.values(), *attached.values())}
        found = torch.autograd.grad(output, list(targets.values()), cotangent(output), allow_unused=True)
        gradient_of = dict(zip(targets, found, strict=True))
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(before[name])
    gradients = {}
    for name, leaf in leaves.items():
        gradient = gradient_of[id(leaf)]
        gradients[name] = cpu_copy(torch.zeros_like(leaf) if gradient is None else gradient)
    if "attn.qkv" in weights or "attn.q" in weights:
        fused = gradients.get("attn.qkv")
        if fused is None:
            fused = join_weight(*(gradients[name] for name in _PROJECTIONS))
        for name in _PROJECTIONS:
            gradients[name] = projection(fused, name[-1], n_heads).unflatten(0, (n_heads, -1))
    for name, gradient in gradients.items():
        observation.taps[f"grad.{name}"] = gradient
    return returned, [name for name, tensor in attached.items() if gradient_of[id(tensor)] is None]
