"""The model without rounding: hidden states in float64 from one component to the next.

The weights are the stored ones, so only the roundings of the computation are left out. The computation is made of the
stages' values. A prompt goes through at once, with a causal mask, because a cache changes only roundings. There is no
bound here: it would grow with every layer, by factors that make it useless. Pass or fail depends on each component's
own stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from cgverify.oracle.arithmetic import BLOCK_ELEMENTS, row_blocks
from cgverify.oracle.gelu import gelu_new
from cgverify.oracle.layer_norm import layer_norm
from cgverify.oracle.parameters import Parameters
from cgverify.oracle.rope import rope


def embed(tokens: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    """Embed token ids `[batch, seq]` as `[batch, seq, d_model]`."""
    return parameters.tensor("embed")[tokens].to(torch.float64)


def block(x: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    """Run a block on `[batch, seq, d_model]` at positions 0, 1, 2, …, each of which sees itself and those before."""
    normed = _norm(x, "ln1", parameters)
    inner = gelu_new(_linear(normed, "mlp.in", parameters)).value
    return x + _attention(normed, parameters) + _linear(inner, "mlp.out", parameters)


def ln_final(x: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    return _norm(x, "ln_final", parameters)


def unembed(x: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    """Return the logits `[batch, seq, vocabulary]` of `[batch, seq, d_model]`."""
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
    y = torch.cat([x @ weight[rows].to(torch.float64).T for rows in row_blocks(weight, 4 * BLOCK_ELEMENTS)], -1)
    return y if bias is None else y + bias.to(torch.float64)


def _norm(x: torch.Tensor, name: str, parameters: Parameters) -> torch.Tensor:
    return layer_norm(x, *parameters.gain_and_bias(name), parameters.eps).value


def _attention(x: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    seq = x.shape[1]
    positions = torch.arange(seq).unsqueeze(0)
    query, key, value = (_linear(x, f"attn.{w}", parameters).unflatten(-1, (parameters.n_heads, -1)) for w in "qkv")
    query, key = (
        rope(heads, parameters.tensor("attn.table"), positions).value.transpose(1, 2) for heads in (query, key)
    )
    later = torch.ones(seq, seq, dtype=torch.bool).triu(1)
    scores = (query @ key.mT / math.sqrt(query.shape[-1])).masked_fill(later, -math.inf)
    mixed = scores.softmax(-1) @ value.transpose(1, 2)
    return _linear(mixed.transpose(1, 2).flatten(2), "attn.o", parameters)
