"""Each component's forward as one float64 computation, from the weights as stored, for its gradient.

The formulas are those of the stages. Rounded are the tensors that Hugging Face's modules store between their
operations, in the dtypes in which they store them. `w` is a component's weights by the names of `Parameters`, and
biases as `NAME.bias`. Each forward shows the tensors that a bridge shows to its hooks, under the names of the hooks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from cgverify.oracle.arithmetic import UNIT_ROUNDOFF, accumulator
from cgverify.oracle.monte_carlo import (
    Roundings,
    expanded,
    gradient_stored,
    product,
    softmax,
    stored,
    tanh,
    value_stored,
)

Leaves = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Context:
    """The arguments of a forward that it has no gradients for."""

    dtype: torch.dtype
    roundings: Roundings
    scores: Callable[[torch.Tensor, torch.Tensor, Context], torch.Tensor]
    """From rotated queries and keys `[batch, heads, seq, head_dim]` to masked and scaled scores."""
    n_heads: int = 1
    eps: float = 0.0
    table: torch.Tensor | None = None
    """`[positions, rotary_dim]`, sines before cosines, in its own dtype."""
    position_ids: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    """In float64, as all tensors that have gradients."""
    is_cached: bool = False
    """Whether keys go through a cache."""
    shown: dict[str, torch.Tensor] = field(default_factory=dict)
    """By tap: what the forward has shown."""
    prefix: str = ""
    """The prefix of the taps."""

    def show(self, tap: str, x: torch.Tensor) -> torch.Tensor:
        """Show a tensor, and return it. All that depends on it must be computed from what is returned."""
        self.shown[self.prefix + tap] = x
        return x

    def show_heads(self, tap: str, x: torch.Tensor) -> torch.Tensor:
        """Show `[batch, heads, seq, head_dim]` as a hook does, with heads and tokens exchanged, and return it."""
        return self.show(tap, x.transpose(1, 2)).transpose(1, 2)

    def under(self, prefix: str) -> Context:
        """Return this context with another prefix, for a part."""
        return replace(self, prefix=prefix)


def linear(x: torch.Tensor, w: Leaves, context: Context, name: str) -> torch.Tensor:
    """Multiply x `[…, n]` by a weight `[m, n]` and add its bias, if it has one."""
    dtype, roundings = context.dtype, context.roundings
    rows = x.flatten(0, -2)
    y = product(rows, w[name].mT, dtype, roundings)
    if (bias := w.get(f"{name}.bias")) is not None:
        y = stored(y + expanded(bias, y.shape, dtype, roundings), dtype, roundings)
    return y.reshape(*x.shape[:-1], -1)


def layer_norm(x: torch.Tensor, w: Leaves, context: Context, name: str) -> torch.Tensor:
    dtype, roundings = context.dtype, context.roundings
    wide = accumulator(dtype)
    rows = gradient_stored(context.show("hook_in", x.clone()).flatten(0, -2), dtype, roundings)
    centred = stored(rows - stored(rows.mean(-1, keepdim=True), wide, roundings), wide, roundings)
    variance = stored(centred.square().mean(-1, keepdim=True), wide, roundings)
    x_hat = stored(centred * stored((variance + context.eps).rsqrt(), wide, roundings), wide, roundings)
    gain, bias = (expanded(w[each], rows.shape, dtype, roundings) for each in (name, f"{name}.bias"))
    return context.show("hook_out", stored(gain * x_hat + bias, dtype, roundings).view_as(x))


def gelu_new(x: torch.Tensor, context: Context) -> torch.Tensor:
    """Apply the eight operations of Hugging Face, each of them stored."""

    def kept(y: torch.Tensor) -> torch.Tensor:
        return stored(y, context.dtype, context.roundings)

    cubic = kept(x + kept(0.044715 * kept(x.pow(3))))
    t = tanh(kept(math.sqrt(2 / math.pi) * cubic), context.dtype, context.roundings)
    return kept(kept(0.5 * x) * kept(1 + t))


def mlp(x: torch.Tensor, w: Leaves, context: Context) -> torch.Tensor:
    x = context.show("hook_in", x.clone())
    before = context.show("in.hook_out", linear(x, w, context, "mlp.in"))
    after = context.show("out.hook_in", gelu_new(before, context))
    return context.show("hook_out", linear(after, w, context, "mlp.out"))


def attention(x: torch.Tensor, w: Leaves, context: Context) -> torch.Tensor:
    dtype, roundings = context.dtype, context.roundings
    x = context.show("hook_in", x.clone())
    query, key, value = (
        context.show(f"hook_{name}", linear(x, w, context, f"attn.{name}").unflatten(-1, (context.n_heads, -1)))
        for name in "qkv"
    )
    query, key = (_rotated(heads.transpose(1, 2), context) for heads in (query, key))
    scores = context.show("hook_attn_scores", context.scores(query, key, context))
    pattern = value_stored(softmax(scores, accumulator(dtype), roundings), dtype, roundings)
    # What is shown is also returned: the sum of both gradients is rounded.
    pattern = gradient_stored(context.show("hook_pattern", pattern), dtype, roundings)
    z = context.show_heads("hook_z", product(pattern, value.transpose(1, 2), dtype, roundings))
    return context.show("hook_out", linear(z.transpose(1, 2).flatten(2), w, context, "attn.o"))


def block(x: torch.Tensor, w: Leaves, context: Context) -> torch.Tensor:
    normed = gradient_stored(layer_norm(x, w, context.under("ln1."), "ln1"), context.dtype, context.roundings)
    both = attention(normed, w, context.under("attn.")) + mlp(normed, w, context.under("mlp."))
    both = stored(both, context.dtype, context.roundings)
    return context.show("hook_out", stored(both + x, context.dtype, context.roundings))


FORWARDS: dict[str, Callable[[torch.Tensor, Leaves, Context], torch.Tensor]] = {
    **{name: partial(layer_norm, name=name) for name in ("ln1", "ln_final")},
    "attn": attention,
    "mlp": mlp,
    "block": block,
    **{name: partial(linear, name=name) for name in ("attn.o", "mlp.in", "mlp.out", "unembed")},
}
"""By kind of component."""


def masked_then_scaled(query: torch.Tensor, key: torch.Tensor, context: Context) -> torch.Tensor:
    """Return (q·kᵀ + mask) / √D in float32, from queries and keys that the table promoted; see `Context.scores`."""
    assert context.table is not None
    roundings, wide = context.roundings, torch.promote_types(context.dtype, context.table.dtype)
    # Scores are float32 products even of float64 queries and keys.
    query, key = (stored(heads, wide, roundings) for heads in (query, key))
    query, key = context.show_heads("hook_rot_q", query), context.show_heads("hook_rot_k", key)
    if context.is_cached:
        key = stored(key, context.dtype, roundings)
    query, key = (stored(heads, torch.float32, roundings) for heads in (query, key))
    return _masked(product(query, key.mT, torch.float32, roundings), context) / math.sqrt(query.shape[-1])


def scaled_then_masked(query: torch.Tensor, key: torch.Tensor, context: Context) -> torch.Tensor:
    """Return q·kᵀ · D^−½ + mask in float32, from queries and keys cast back to v's dtype; see `Context.scores`."""
    assert context.table is not None
    roundings, wide = context.roundings, torch.promote_types(context.dtype, context.table.dtype)
    for dtype in (wide, context.dtype):
        query, key = stored(query, dtype, roundings), stored(key, dtype, roundings)
    query, key = context.show_heads("hook_rot_q", query), context.show_heads("hook_rot_k", key)
    query, key = (stored(heads, torch.float32, roundings) for heads in (query, key))
    scaled = product(query, key.mT, torch.float32, roundings) / math.sqrt(query.shape[-1])
    return _masked(stored(scaled, torch.float32, roundings), context)


def _masked(scores: torch.Tensor, context: Context) -> torch.Tensor:
    """Return the rounded sum with the mask. A mask so low that it absorbs every score rounds them all alike."""
    if context.mask is None:
        return scores
    summed = scores + expanded(context.mask, scores.shape, torch.float32, context.roundings)
    absorbs = context.mask.detach().abs() * UNIT_ROUNDOFF[torch.float32] > scores.detach().abs().amax()
    return torch.where(absorbs, summed, stored(summed, torch.float32, context.roundings))


def _rotated(heads: torch.Tensor, context: Context) -> torch.Tensor:
    """Rotate the first `rotary_dim` dimensions of heads `[batch, heads, seq, head_dim]`."""
    assert context.table is not None
    assert context.position_ids is not None
    half = context.table.shape[-1] // 2
    angles = context.table[context.position_ids].to(torch.float64).unsqueeze(1)
    sin, cos = angles[..., :half], angles[..., half:]
    even, odd = heads[..., 0 : 2 * half : 2], heads[..., 1 : 2 * half : 2]
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    return torch.cat((turned, heads[..., 2 * half :]), dim=-1)
