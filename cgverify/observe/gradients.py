"""Gradients of a component of either side, as taps: `grad.hidden_states`, `grad.attn.q`, `grad.mlp.in.bias`, …

They are those of Σ sum(T · G) over the tensors T that are returned, each with its own G. The weights of q, k and v have
one gradient `[3 * d_model, d_model]` in Hugging Face. The bridge's three are joined into that layout, and the oracle
splits both by its own count of the rows. A weight that no gradient reaches has the gradient 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cgverify.bridge import join_weight
from cgverify.observe.bits import same_tensor
from cgverify.observe.conditions import Cotangent
from cgverify.observe.fault import calls_a_side
from cgverify.observe.taps import Taps, cpu_copy
from cgverify.oracle.fused_qkv import projection

_REFERENCE = {
    "embed": "transformer.wte",
    "ln1": "transformer.h.0.ln_1",
    "attn.qkv": "transformer.h.0.attn.qkv_proj",
    "attn.o": "transformer.h.0.attn.out_proj",
    "mlp.in": "transformer.h.0.mlp.fc_in",
    "mlp.out": "transformer.h.0.mlp.fc_out",
    "ln_final": "transformer.ln_f",
    "unembed": "lm_head",
}
"""The modules of a Hugging Face model whose weights have gradients."""

LEARNED = ("attention_mask",)
"""Inputs that some callers take gradients in."""

_PROJECTIONS = ("attn.q", "attn.k", "attn.v")
_OF_BLOCK = ("ln1", *_PROJECTIONS, "attn.o", "mlp.in", "mlp.out")


def modules_with_gradients(kind: str) -> tuple[str, ...]:
    """Return the bridge's modules in a kind of component whose weights have gradients, by the names of `Parameters`."""
    every = ("embed", *_OF_BLOCK, "ln_final", "unembed")
    return tuple(
        name for name in every if kind == name or name.startswith(f"{kind}.") or (kind == "block" and name in _OF_BLOCK)
    )


def reference_weights(model: nn.Module, kind: str) -> dict[str, nn.Parameter]:
    """Return the weights of a component of a one-block Hugging Face model, by name; q, k and v as one."""
    names = ["attn.qkv" if name in _PROJECTIONS else name for name in modules_with_gradients(kind)]
    return _weights({name: model.get_submodule(_REFERENCE[name]) for name in names})


@calls_a_side
def candidate_weights(bridge: nn.Module, kind: str) -> dict[str, nn.Parameter]:
    """Return the weights of a component of a one-block bridge, by name."""
    paths = {name: f"blocks.0.{name}" if name in _OF_BLOCK else name for name in modules_with_gradients(kind)}
    nodes: dict[str, Any] = {name: bridge.get_submodule(path) for name, path in paths.items()}
    return _weights({name: node.original_component for name, node in nodes.items()})


@calls_a_side
def _weights(modules: dict[str, Any]) -> dict[str, nn.Parameter]:
    found: dict[str, nn.Parameter] = {}
    for name, module in modules.items():
        found[name] = module.weight
        if getattr(module, "bias", None) is not None:
            found[f"{name}.bias"] = module.bias
    return found


@dataclass(frozen=True)
class Differentiated:
    """What a call returned, and the gradients of that."""

    returned: Any
    gradients: Taps
    """By the names of inputs and weights."""
    unreached: Sequence[str]
    """The paths of hooks that were shown a tensor which requires a gradient and gets none."""
    violations: Sequence[tuple[str, str]]
    """Wrong conduct: the tap concerned, and a sentence."""


@calls_a_side
def call_and_differentiate(
    call: Callable[[dict[str, Any]], Any],
    inputs: dict[str, Any],
    names: Sequence[str],
    weights: dict[str, nn.Parameter],
    n_heads: int,
    cotangent: Cotangent,
    shown: Mapping[str, torch.Tensor],
    by_output: bool,
) -> Differentiated:
    """Call a component, and return the gradients of Σ sum(returned · cotangent) in some inputs and all weights.

    Whether the weights require gradients is restored. If no hook is shown anything, the gradients are also accumulated
    over a second backward pass through the same graph.

    Args:
        names: the inputs that gradients are taken in.
        shown: the tensors that hooks received, by path, once the component has been called.
        by_output: whether the gradient must arrive there from the first returned tensor, and not from the pattern.
    """
    own = {name: inputs[name].detach().clone().requires_grad_() for name in names}
    leaves: dict[str, torch.Tensor] = {**own, **weights}
    before = {name: (weight.requires_grad, weight.grad) for name, weight in weights.items()}
    for weight in weights.values():
        weight.requires_grad_()
    try:
        returned = call(inputs | own)
        cotangents, violations = _cotangents(returned, cotangent)
        attached = {name: tensor for name, tensor in shown.items() if tensor.requires_grad}
        # torch returns the gradient of a tensor that is named twice only once.
        targets = {id(tensor): tensor for tensor in (*leaves.values(), *attached.values())}
        outputs, given = zip(*cotangents, strict=True)
        alone = by_output and len(outputs) > 1
        unreached = _unreached(attached, outputs[:1], given[:1]) if alone else []
        found = torch.autograd.grad(outputs, list(targets.values()), given, allow_unused=True, retain_graph=not shown)
        gradient_of = dict(zip(targets, found, strict=True))
        if not shown:
            reached = {name: leaf for name, leaf in leaves.items() if gradient_of[id(leaf)] is not None}
            for leaf in reached.values():
                leaf.grad = gradient_of[id(leaf)].clone()
            torch.autograd.backward(outputs, given, inputs=list(reached.values()))
            violations += [
                (f"grad.{name}", f"the gradient of {name} is not doubled by a second backward pass")
                for name, leaf in reached.items()
                if leaf.grad is None or not same_tensor(2 * gradient_of[id(leaf)], leaf.grad)
            ]
    finally:
        for name, weight in weights.items():
            required, weight.grad = before[name]
            weight.requires_grad_(required)
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
    if not alone:
        unreached = [name for name, tensor in attached.items() if gradient_of[id(tensor)] is None]
    return Differentiated(returned, gradients, unreached, violations)


def _unreached(
    shown: Mapping[str, torch.Tensor], outputs: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor]
) -> list[str]:
    distinct = {id(tensor): tensor for tensor in shown.values()}
    if not distinct:
        return []
    found = torch.autograd.grad(outputs, list(distinct.values()), cotangents, allow_unused=True, retain_graph=True)
    gradient_of = dict(zip(distinct, found, strict=True))
    return [name for name, tensor in shown.items() if gradient_of[id(tensor)] is None]


def _cotangents(
    returned: Any, cotangent: Cotangent
) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], list[tuple[str, str]]]:
    """Return each returned tensor that requires a gradient with its cotangent, and violations of those that do not."""
    parts = returned if isinstance(returned, tuple) else (returned,)
    cotangents = [(parts[0], cotangent(parts[0]))]
    if not cotangent.with_pattern or len(parts) == 1:
        return cotangents, []
    pattern = parts[1]
    if not isinstance(pattern, torch.Tensor) or not pattern.requires_grad:
        return cotangents, [("returned_pattern", "the returned pattern is cut off from autograd")]
    return [*cotangents, (pattern, cotangent.of_pattern(pattern))], []
