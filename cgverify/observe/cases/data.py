"""`data`: values, masks, positions and memory layouts at their edges.

| step | components | what it shows |
|---|---|---|
| `values` | all but the embedding | four rows of a batch, below |
| `strided` | all | a `view` of inputs that are not contiguous; rows with one first token and one soft mask for all |
| `one token many times` | embedding | |
| `mask of -10000` | attention | it hides nothing: where all keys have it, scores count; positions that fall or repeat |
| `mask by head` | attention | `[batch, heads, queries, keys]` |
| `boolean mask` | attention, with sdpa | True where a key is seen |
| `no mask` | attention | None, for a single token on a cache, where it hides nothing in any convention |

The four rows of `values` are large, which shows a clamp at ±50, ±1000 or, where the dtype has it, ±65504; with a
subnormal first token, which sees itself alone and shows what is flushed to 0; with a NaN, or an infinity, which must go
where they go in Hugging Face; of zeros and of equal tokens, which show a division by a variance of 0.

With eager attention a boolean mask is not asked for, since Hugging Face's adds it as 0 and 1. A mask `[batch, keys]` is
one of the model, not of attention, and no mask with several tokens is causal in TransformerLens alone. Taps that have
the same bits as Hugging Face's pass: so NaN must be where it is there.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from cgverify.observe.cases.case import Case
from cgverify.observe.components import Component
from cgverify.observe.inputs import LOWEST, Inputs, InputSpec, Step, leave_unchanged, slice_tokens
from cgverify.oracle.arithmetic import HALVES

LARGE = {torch.float16: 1e3}
"""The factor on standard normal values of a large row; 1e6 in other dtypes."""

TINY = {torch.float16: 2.0**-18, torch.bfloat16: 2.0**-100}
"""The factor of a tiny token, subnormal in float16 and, with 2⁻¹³⁰, in float32. Hugging Face's own bfloat16 products on
the CPU flush subnormal values. Only one token is tiny, since a processor multiplies subnormal values slowly."""

BIASED = ("mlp", "mlp.in", "mlp.out", "block", "unembed")
"""The components in which a Linear has a bias. Their hidden states are contiguous in 16 bits: given strided ones, torch
rounds the product before it adds the bias, so that Hugging Face's own tensor exceeds the bound."""


def _steps(component: Component, inputs: Inputs, spec: InputSpec) -> tuple[Step, ...]:
    if "input_ids" in inputs:
        ids = inputs["input_ids"]
        same, strided = ids[:1, :1].expand(ids.shape).clone(), ids.mT.contiguous().mT
        return (Step("one token many times", {"input_ids": same}), Step("strided", {"input_ids": strided}))
    hidden = inputs["hidden_states"]
    values = _values(hidden, spec)
    one = {name: value[:1].expand(len(values), *value.shape[1:]).clone() for name, value in inputs.items()}
    shared = {name: value[:1].clone() for name, value in inputs.items()}
    if "attention_mask" in shared:
        shared["attention_mask"] = _soft(shared["attention_mask"], 1)
    begun = torch.cat((hidden[:1, :1].expand(len(hidden), -1, -1), hidden[:, 1:]), 1)
    if component.kind not in BIASED or spec.dtype not in HALVES:
        begun = begun.mT.contiguous().mT
    return (
        Step("values", {**one, "hidden_states": values}),
        Step("strided", {**shared, "hidden_states": begun}),
        *(_contexts({**inputs, "hidden_states": hidden * spec.spread}, spec) if component.kind == "attn" else ()),
    )


def _values(hidden: torch.Tensor, spec: InputSpec) -> torch.Tensor:
    """Return hidden states `[4, seq, width]` at the edges, from `[batch, seq, width]`."""
    row = hidden[0]
    tiny, odd, alike = row.clone(), row.clone(), row.clone()
    tiny[0] *= TINY.get(spec.dtype, 2.0**-130)
    odd[len(odd) // 2, 0] = torch.nan
    odd[-1, 1], odd[-1, 2] = torch.inf, -torch.inf
    odd[0, 0] = torch.inf
    alike[: len(alike) // 2] = 0.0
    alike[len(alike) // 2 :] = row[-1]
    alike[-1] = 0.5
    return torch.stack([row * LARGE.get(spec.dtype, 1e6), tiny, odd, alike])


def _contexts(inputs: Inputs, spec: InputSpec) -> Iterator[Step]:
    """Yield the steps of attention with other masks and positions."""
    mask = inputs["attention_mask"]
    batch, seq = mask.shape[0], mask.shape[2]
    hidden = mask <= LOWEST
    low = torch.where(hidden, -1e4, mask)
    low[:, :, seq // 2] = -1e4
    positions = torch.arange(seq - 1, -1, -1).repeat(batch, 1)
    positions[0] = spec.n_positions // 2
    yield Step("mask of -10000", {**inputs, "attention_mask": low, "position_ids": positions})
    yield Step("mask by head", {**inputs, "attention_mask": _soft(mask, spec.n_heads)})
    if spec.attention == "sdpa":
        yield Step("boolean mask", {**inputs, "attention_mask": ~hidden})
    last = seq - 1
    if last:
        yield Step("before no mask", slice_tokens(inputs, slice(0, last)), cache="all")
    alone = slice_tokens(inputs, slice(last, seq))
    del alone["attention_mask"]
    yield Step("no mask", alone, cache="all")


def _soft(mask: torch.Tensor, heads: int) -> torch.Tensor:
    """Return `[batch, heads, queries, keys]` that hides what a mask hides, with other values for each element."""
    batch, _, seq, keys = mask.shape
    values = torch.arange(batch * heads * seq * keys).sin().view(batch, heads, seq, keys) * 3
    return values.masked_fill(mask <= LOWEST, LOWEST)


CASE = Case(
    transform=leave_unchanged,
    steps=_steps,
    stages=lambda component, step: component.stages(step.cache is not None),
    accepts_equal_bits=True,
)
