"""Each component's forward as one float64 computation, from the weights as stored, for its gradient.

Formulas are those of the stages; what is rounded, and to which dtype, is what Hugging Face's modules store between
their operations. `w` is a component's weights by the names of `Parameters`, biases with `.bias` behind it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from cgverify.oracle.arithmetic import UNIT_ROUNDOFF, accumulator
from cgverify.oracle.monte_carlo import Roundings, arriving, in_rows, product, softmax, stored, tanh

Leaves = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Setting:
    """What a forward is given beside the leaves that it has gradients for."""

    dtype: torch.dtype
    roundings: Roundings
    scores: Callable[[torch.Tensor, torch.Tensor, Setting], torch.Tensor]
    """From rotated queries and keys `[batch, heads, seq, head_dim]` to masked and scaled scores."""
    n_heads: int = 1
    eps: float = 0.0
    table: torch.Tensor | None = None
    """`[positions, rotary_dim]`, sines before cosines, in its own dtype."""
    position_ids: torch.Tensor | None = None
    mask: torch.Tensor | None = None


def linear(x: torch.Tensor, name: str, w: Leaves, setting: Setting) -> torch.Tensor:
    """x `[…, n]` times a weight `[m, n]`, and its bias if it has one."""
    dtype, roundings = setting.dtype, setting.roundings
    rows = x.flatten(0, -2)
    y = product(rows, w[name].mT, dtype, roundings)
    if (bias := w.get(f"{name}.bias")) is not None:
        y = stored(y + in_rows(bias, len(rows), dtype, roundings), dtype, roundings)
    return y.reshape(*x.shape[:-1], -1)


def norm(x: torch.Tensor, name: str, w: Leaves, setting: Setting) -> torch.Tensor:
    dtype, roundings = setting.dtype, setting.roundings
    wide = accumulator(dtype)
    rows = arriving(x.flatten(0, -2), dtype, roundings)
    centred = stored(rows - stored(rows.mean(-1, keepdim=True), wide, roundings), wide, roundings)
    variance = stored(centred.square().mean(-1, keepdim=True), wide, roundings)
    x_hat = stored(centred * stored((variance + setting.eps).rsqrt(), wide, roundings), wide, roundings)
    gain, bias = (in_rows(w[each], len(rows), dtype, roundings) for each in (name, f"{name}.bias"))
    return stored(gain * x_hat + bias, dtype, roundings).view_as(x)


def gelu_new(x: torch.Tensor, setting: Setting) -> torch.Tensor:
    """In the eight operations of Hugging Face, each of them stored."""

    def kept(y: torch.Tensor) -> torch.Tensor:
        return stored(y, setting.dtype, setting.roundings)

    cubic = kept(x + kept(0.044715 * kept(x.pow(3))))
    t = tanh(kept(math.sqrt(2 / math.pi) * cubic), setting.dtype, setting.roundings)
    return kept(kept(0.5 * x) * kept(1 + t))


def mlp(x: torch.Tensor, w: Leaves, setting: Setting) -> torch.Tensor:
    return linear(gelu_new(linear(x, "mlp.in", w, setting), setting), "mlp.out", w, setting)


def attention(x: torch.Tensor, w: Leaves, setting: Setting) -> torch.Tensor:
    dtype, roundings = setting.dtype, setting.roundings
    query, key, value = (
        linear(x, f"attn.{name}", w, setting).unflatten(-1, (setting.n_heads, -1)).transpose(1, 2) for name in "qkv"
    )
    scores = setting.scores(_rotated(query, setting), _rotated(key, setting), setting)
    pattern = stored(softmax(scores, accumulator(dtype), roundings), dtype, roundings)
    z = product(pattern, value, dtype, roundings).transpose(1, 2).flatten(2)
    return linear(z, "attn.o", w, setting)


def block(x: torch.Tensor, w: Leaves, setting: Setting) -> torch.Tensor:
    normed = arriving(norm(x, "ln1", w, setting), setting.dtype, setting.roundings)
    both = stored(attention(normed, w, setting) + mlp(normed, w, setting), setting.dtype, setting.roundings)
    return stored(both + x, setting.dtype, setting.roundings)


def masked_then_scaled(query: torch.Tensor, key: torch.Tensor, setting: Setting) -> torch.Tensor:
    """(q·kᵀ + mask) / √D in float32, from queries and keys that the table promoted. An order for `Setting.scores`."""
    assert setting.table is not None
    roundings, wide = setting.roundings, torch.promote_types(setting.dtype, setting.table.dtype)
    # Scores are float32 products even of float64 queries and keys.
    query, key = (stored(stored(heads, wide, roundings), torch.float32, roundings) for heads in (query, key))
    return _masked(product(query, key.mT, torch.float32, roundings), setting) / math.sqrt(query.shape[-1])


def scaled_then_masked(query: torch.Tensor, key: torch.Tensor, setting: Setting) -> torch.Tensor:
    """q·kᵀ · D^−½ + mask in float32, from queries and keys cast back to v's dtype. An order for `Setting.scores`."""
    assert setting.table is not None
    roundings, wide = setting.roundings, torch.promote_types(setting.dtype, setting.table.dtype)
    for dtype in (wide, setting.dtype, torch.float32):
        query, key = stored(query, dtype, roundings), stored(key, dtype, roundings)
    scaled = product(query, key.mT, torch.float32, roundings) / math.sqrt(query.shape[-1])
    return _masked(stored(scaled, torch.float32, roundings), setting)


def _masked(scores: torch.Tensor, setting: Setting) -> torch.Tensor:
    """The rounded sum with the mask. Where the mask is so low that it absorbs every score, all are rounded alike."""
    if setting.mask is None:
        return scores
    summed = scores + setting.mask.to(torch.float64)
    absorbs = setting.mask.to(torch.float64).abs() * UNIT_ROUNDOFF[torch.float32] > scores.detach().abs().amax()
    return torch.where(absorbs, summed, stored(summed, torch.float32, setting.roundings))


def _rotated(heads: torch.Tensor, setting: Setting) -> torch.Tensor:
    """heads `[batch, heads, seq, head_dim]`, turned in their first `rotary_dim` dimensions."""
    assert setting.table is not None
    assert setting.position_ids is not None
    half = setting.table.shape[-1] // 2
    angles = setting.table[setting.position_ids].to(torch.float64).unsqueeze(1)
    sin, cos = angles[..., :half], angles[..., half:]
    even, odd = heads[..., 0 : 2 * half : 2], heads[..., 1 : 2 * half : 2]
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    return torch.cat((turned, heads[..., 2 * half :]), dim=-1)
