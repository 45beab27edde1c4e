"""Derivatives of a component that a single backward pass through a single call does not show. No hook is attached.

| tap | derivative of the output |
|---|---|
| `cached.hidden_states` | the gradient in all hidden states, of which a first call has cached the first half |
| `tangent.returned` | forward mode, in the direction d of the hidden states |
| `second.hidden_states` | ∇⟨∇sum(output · G), d⟩ |
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad
from transformers import DynamicCache

from cgverify.observe.conditions import Call, Cotangent, Place
from cgverify.observe.fault import calls_a_side
from cgverify.observe.inputs import fill_layers_below, slice_tokens
from cgverify.observe.taps import Taps


def first_of(returned: Any) -> torch.Tensor:
    """Return the output, which may be returned together with a pattern."""
    output: torch.Tensor = returned[0] if isinstance(returned, tuple) else returned
    return output


@calls_a_side
def through_a_cache(call: Call, inputs: dict[str, Any], cotangent: Cotangent, place: Place) -> Taps:
    leaf = inputs["hidden_states"].detach().clone().requires_grad_()
    cache, half, outputs = DynamicCache(), leaf.shape[1] // 2, []
    for tokens in (slice(0, half), slice(half, leaf.shape[1])):
        piece = slice_tokens({**inputs, "hidden_states": leaf}, tokens)
        fill_layers_below(cache, place.layer, place.n_heads, piece["hidden_states"].detach())
        outputs.append(first_of(call(piece, cache)))
    output = torch.cat(outputs, 1)
    return {"cached.hidden_states": torch.autograd.grad(output, leaf, cotangent(output))[0]}


@calls_a_side
def tangent_and_second(call: Call, inputs: dict[str, Any], cotangent: Cotangent, _: Place) -> Taps:
    hidden = inputs["hidden_states"].detach()
    direction = cotangent.direction(hidden)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(hidden.clone(), direction)
        output, tangent = forward_ad.unpack_dual(first_of(call({**inputs, "hidden_states": dual}, None)))
        taps = {"tangent.returned": torch.zeros_like(output) if tangent is None else tangent}
    leaf = hidden.clone().requires_grad_()
    output = first_of(call({**inputs, "hidden_states": leaf}, None))
    (first,) = torch.autograd.grad(output, leaf, cotangent(output), create_graph=True)
    second = torch.autograd.grad(first, leaf, direction, allow_unused=True)[0] if first.requires_grad else None
    return {**taps, "second.hidden_states": torch.zeros_like(leaf) if second is None else second}
