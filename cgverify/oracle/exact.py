"""The model without rounding: hidden states in float64 from one component to the next.

The weights are those of a setting, as stored, so what is left out is every rounding of what is computed. Formulas are
those of the stages. A prompt goes through at once, under a causal mask: a cache changes nothing but roundings. There is
no bound here. It would have to grow with every layer, by factors that see nothing in the end; what gates is each
component's own stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from cgverify.oracle.parameters import Parameters

BLOCK_ELEMENTS = 1 << 22
"""How much of a weight is upcast at once."""


def embed(tokens: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    """Token ids `[batch, seq]` → `[batch, seq, d_model]`."""
    table = parameters.tensor("embed")
    return table[tokens.to(table.device)].to(torch.float64)


def block(x: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    """`[batch, seq, d_model]`, positions 0, 1, 2, …, each seeing itself and those before."""
    normed = _norm(x, "ln1", parameters)
    inner = _linear(normed, "mlp.in", parameters)
    return x + _attention(normed, parameters) + _linear(_gelu_new(inner), "mlp.out", parameters)


def ln_final(x: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    return _norm(x, "ln_final", parameters)


def unembed(x: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    """`[batch, seq, d_model]` → logits `[batch, seq, vocabulary]`."""
    return _linear(x, "unembed", parameters)


FORWARDS: dict[str, Callable[[torch.Tensor, Parameters], torch.Tensor]] = {
    "embed": embed,
    "block": block,
    "ln_final": ln_final,
    "unembed": unembed,
}
"""By kind of component."""


def _linear(x: torch.Tensor, name: str, parameters: Parameters) -> torch.Tensor:
    weight, bias = parameters.tensor(name), parameters.bias(name)
    rows = max(1, BLOCK_ELEMENTS // weight.shape[1])
    y = torch.cat([x @ part.to(torch.float64).T for part in weight.split(rows)], -1)
    return y if bias is None else y + bias.to(torch.float64)


def _norm(x: torch.Tensor, name: str, parameters: Parameters) -> torch.Tensor:
    gain, bias = parameters.tensor(name).to(torch.float64), parameters.required_bias(name).to(torch.float64)
    centred = x - x.mean(-1, keepdim=True)
    return gain * centred / (centred.square().mean(-1, keepdim=True) + parameters.eps).sqrt() + bias


def _gelu_new(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3))))


def _attention(x: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    query, key, value = (
        _linear(x, f"attn.{w}", parameters).unflatten(-1, (parameters.n_heads, -1)).transpose(1, 2) for w in "qkv"
    )
    angles = parameters.tensor("attn.table")[: x.shape[1]].to(torch.float64)
    scores = _rotated(query, angles) @ _rotated(key, angles).mT / math.sqrt(query.shape[-1])
    later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
    pattern = scores.masked_fill(later, -math.inf).softmax(-1)
    return _linear((pattern @ value).transpose(1, 2).flatten(2), "attn.o", parameters)


def _rotated(heads: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """heads `[batch, heads, seq, head_dim]`; angles `[seq, rotary_dim]`, sines before cosines."""
    half = angles.shape[-1] // 2
    sin, cos = angles[:, :half], angles[:, half:]
    even, odd = heads[..., 0 : 2 * half : 2], heads[..., 1 : 2 * half : 2]
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    return torch.cat((turned, heads[..., 2 * half :]), dim=-1)
