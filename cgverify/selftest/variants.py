"""Correct candidates that compute the same in another way: other roundings, the same bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.bridge.qkv_layout import PARTITIONS
from cgverify.selftest.entry import ATTENTION, Variant
from cgverify.selftest.seeded.feed_forward import activated_by

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
ProductFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Of an input, a weight and a bias or None, in one dtype."""


def _linears(bridge: Any) -> list[Any]:
    """Every Linear of a block and the unembedding."""
    block = bridge.blocks[0]
    owners = (block.attn.q, block.attn.k, block.attn.v, block.attn.o, getattr(block.mlp, "in"), block.mlp.out)
    return [owner.original_component for owner in (*owners, bridge.unembed)]


def _multiplied(bridge: Any, product: ProductFunction) -> Any:
    """Let every product of a bridge be taken by a function, of what autocast makes of its operands if that is on."""
    for linear in _linears(bridge):

        def forward(x: torch.Tensor, linear: nn.Linear = linear) -> torch.Tensor:
            operands = taken(x), taken(linear.weight), None if linear.bias is None else taken(linear.bias)
            with by_hand(x):
                return product(*operands)

        linear.forward = forward
    return bridge


def taken(operand: torch.Tensor) -> torch.Tensor:
    """An operand as a product takes it: rounded, if autocast is on."""
    device = operand.device.type
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else operand.dtype
    return operand if operand.dtype == torch.float64 else operand.to(low)


def by_hand(x: torch.Tensor) -> torch.autocast:
    """What stands in it casts for itself. Operands are to be taken before."""
    return torch.autocast(x.device.type, enabled=False)


def row_by_row(bridge: Any) -> Any:
    """One matrix-vector product for each token."""

    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        rows = [nn.functional.linear(row, weight, bias) for row in x.reshape(-1, x.shape[-1])]
        return torch.stack(rows).reshape(*x.shape[:-1], -1)

    return _multiplied(bridge, product)


def permuted_sum(bridge: Any) -> Any:
    """Every product sums its terms in another order."""

    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        order = torch.randperm(x.shape[-1], generator=torch.Generator().manual_seed(0)).to(x.device)
        return nn.functional.linear(x[..., order], weight[:, order], bias)

    return _multiplied(bridge, product)


def split_k(bridge: Any) -> Any:
    """Every product is a sum of four in the accumulator's precision."""

    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        parts = zip(x.to(wide).chunk(4, -1), weight.to(wide).chunk(4, -1), strict=True)
        total = torch.stack([a @ b.T for a, b in parts]).sum(0)
        return (total if bias is None else total + bias).to(x.dtype)

    return _multiplied(bridge, product)


def bias_first(bridge: Any) -> Any:
    """A bias is the first addend."""

    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        start = 0 if bias is None else bias.to(wide)
        return (start + x.to(wide) @ weight.to(wide).T).to(x.dtype)

    return _multiplied(bridge, product)


def products_in_float64(bridge: Any) -> Any:
    """Every product is taken in float64 and rounded once."""

    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double()).to(x.dtype)

    return _multiplied(bridge, product)


def strided_weights(bridge: Any) -> Any:
    """Weights lie transposed in memory."""
    for linear in _linears(bridge):
        weight = linear.weight
        weight.data = weight.data.T.contiguous().T
    return bridge


def one_thread(bridge: Any) -> Any:
    """Every product runs on one thread."""
    return _multiplied(bridge, partial(_with_threads, 1))


def two_threads(bridge: Any) -> Any:
    """Every product runs on two threads."""
    return _multiplied(bridge, partial(_with_threads, 2))


def _with_threads(number: int, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        return nn.functional.linear(x, weight, bias)
    finally:
        torch.set_num_threads(before)


class Fused(CodeGenAttentionBridge):
    """A bridge whose Q, K and V come from one product, where nobody gives them inputs of their own."""

    def fused(self, hidden_states: torch.Tensor) -> Tensors:
        """q, k and v, each `[batch, seq, d_model]`."""
        raise NotImplementedError

    def _project(self, hidden_states: torch.Tensor) -> Tensors:
        if self._is_split_qkv_fork_active():
            return super()._project(hidden_states)
        projections = (self.q, self.k, self.v)
        inputs = [projection.hook_in(hidden_states) for projection in projections]
        if all(x is hidden_states for x in inputs):
            parts = self.fused(hidden_states)
        else:  # a hook returned another tensor to one of them
            query, key, value = (p.original_component(x) for p, x in zip(projections, inputs, strict=True))
            parts = query, key, value
        query, key, value = (
            projection.hook_out(part).unflatten(-1, (self.config.n_heads, -1))
            for projection, part in zip(projections, parts, strict=True)
        )
        return query, key, value


class FusedProjection(Fused):
    """Q, K and V come from one product with the three weights, one below the other."""

    def fused(self, hidden_states: torch.Tensor) -> Tensors:
        weight = torch.cat([p.original_component.weight for p in (self.q, self.k, self.v)])
        query, key, value = nn.functional.linear(hidden_states, weight).chunk(3, -1)
        return query, key, value


class StoredFusedProjection(Fused):
    """The fused weight is multiplied as it is stored, and the result split; in training it would take the gradient."""

    def fused(self, hidden_states: torch.Tensor) -> Tensors:
        if torch.is_grad_enabled():
            apart: Tensors = tuple(each.original_component(hidden_states) for each in (self.q, self.k, self.v))
            return apart
        original: Any = self.original_component
        parts = original.qkv_proj(hidden_states).unflatten(-1, (PARTITIONS, 3, -1))
        query, value, key = (parts[..., i, :].flatten(-2) for i in range(3))
        return query, key, value


class BatchReversed(CodeGenAttentionBridge):
    """Rows of the batch are computed in reverse order."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows = mask.expand(len(query), -1, -1, -1)
        return super()._scores(query.flip(0), key.flip(0), rows.flip(0)).flip(0)

    def _mix(self, pattern: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return super()._mix(pattern.flip(0), value.flip(0)).flip(0)


class HeadByHead(CodeGenAttentionBridge):
    """Each head's scores and z are products of their own."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        heads = [super(HeadByHead, self)._scores(q, k, mask) for q, k in _heads(query, key)]
        return torch.cat(heads, 1)

    def _mix(self, pattern: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return torch.cat([super(HeadByHead, self)._mix(p, v) for p, v in _heads(pattern, value)], -1)


def _heads(first: torch.Tensor, second: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(first.split(1, 1), second.split(1, 1), strict=True))


class ContiguousHeads(CodeGenAttentionBridge):
    """Every operand is contiguous as `[batch, heads, seq, head_dim]`, so that other kernels run."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super()._scores(query.contiguous(), key.contiguous(), mask)

    def _mix(self, pattern: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return super()._mix(pattern, value.contiguous())


class StridedHeads(CodeGenAttentionBridge):
    """Operands lie with the head dimension outermost."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super()._scores(query.mT.contiguous().mT, key.mT.contiguous().mT, mask)

    def _mix(self, pattern: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return super()._mix(pattern.mT.contiguous().mT, value.mT.contiguous().mT)


class ReciprocalScale(CodeGenAttentionBridge):
    """Scores are multiplied by 1/√head_dim."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = query.to(torch.float32) @ key.to(torch.float32).transpose(-1, -2) + mask
        return scores * (1 / math.sqrt(query.shape[-1]))


class MaskInProduct(CodeGenAttentionBridge):
    """The mask is the product's first addend, unless autocast rounds the product before it comes."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled(query.device.type):
            return super()._scores(query, key, mask)
        q, k = query.to(torch.float32).flatten(0, 1), key.to(torch.float32).flatten(0, 1)
        start = mask.to(torch.promote_types(mask.dtype, torch.float32)).expand(*query.shape[:2], -1, -1).flatten(0, 1)
        scores = torch.baddbmm(start, q.to(start.dtype), k.to(start.dtype).mT)
        return scores.reshape(*query.shape[:2], *scores.shape[1:]) / math.sqrt(query.shape[-1])


class SoftmaxByHand(CodeGenAttentionBridge):
    """exp(s − max) / Σ exp(s − max)."""

    def _masked_softmax(self, attn_scores: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        wide = attn_scores.to(torch.promote_types(attn_scores.dtype, torch.float32))
        powers = (wide - wide.amax(-1, keepdim=True)).exp()
        return powers / powers.sum(-1, keepdim=True)


class SoftmaxByLogarithm(CodeGenAttentionBridge):
    """exp(s − log Σ exp s), with the maximum taken off first."""

    def _masked_softmax(self, attn_scores: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        wide = attn_scores.to(torch.promote_types(attn_scores.dtype, torch.float32))
        shifted = wide - wide.amax(-1, keepdim=True)
        return (shifted - shifted.exp().sum(-1, keepdim=True).log()).exp()


class MixedInFloat32(CodeGenAttentionBridge):
    """Pattern and values are cast up, mixed and cast down."""

    def _mix(self, pattern: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        pattern, value = taken(pattern), taken(value)
        wide = torch.promote_types(value.dtype, torch.float32)
        with by_hand(value):
            return super()._mix(pattern.to(wide), value.to(wide)).to(value.dtype)


class AttentionInFloat64(CodeGenAttentionBridge):
    """Scores, softmax and mixing are computed in float64 and rounded once each, scores once more under autocast."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled(query.device.type):
            query, key = taken(query.to(torch.float32)), taken(key.to(torch.float32))
            scores = (query.double() @ key.double().mT).to(query.dtype) + mask
            return scores / math.sqrt(query.shape[-1])
        dtype = torch.promote_types(mask.dtype, torch.float32)
        scores = query.double() @ key.double().transpose(-1, -2) + mask.double()
        return (scores / math.sqrt(query.shape[-1])).to(dtype)

    def _masked_softmax(self, attn_scores: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        return attn_scores.double().softmax(-1)

    def _mix(self, pattern: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        pattern, value = taken(pattern), taken(value)
        return super()._mix(pattern.double(), value.double()).to(value.dtype)


def layer_norm_by_hand(bridge: Any) -> Any:
    """Mean, variance, root, gain and bias one after the other."""
    for module in (bridge.blocks[0].ln1.original_component, bridge.ln_final.original_component):

        def forward(x: torch.Tensor, module: Any = module) -> torch.Tensor:
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            centred = wide - wide.mean(-1, keepdim=True)
            normalized = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + module.eps)
            result: torch.Tensor = normalized * module.weight + module.bias
            return result.to(x.dtype)

        module.forward = forward
    return bridge


def default_layer_norm(bridge: Any) -> Any:
    """TransformerLens's own layer norm."""
    for norm in (bridge.blocks[0].ln1, bridge.ln_final):
        norm.use_native_layernorm_autograd = False
    return bridge


def gelu_by_hand(bridge: Any) -> Any:
    """gelu_new in another order of operations, each rounded in the model's dtype."""

    def gelu(x: torch.Tensor) -> torch.Tensor:
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))
        return x * (0.5 * (1 + inner.tanh()))

    return activated_by(bridge, gelu)


def gelu_in_float32(bridge: Any) -> Any:
    """gelu_new in float32, rounded once: closer to the exact value than Hugging Face's own."""

    def gelu(x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return nn.functional.gelu(wide, approximate="tanh").to(x.dtype)

    return activated_by(bridge, gelu)


def residual_first(bridge: Any) -> Any:
    """The block adds its input to attention's output before the MLP's."""
    block = bridge.blocks[0].original_component

    def forward(hidden_states: torch.Tensor, **context: Any) -> Any:
        normed = block.ln_1(hidden_states)
        output, pattern = block.attn(hidden_states=normed, **context)
        return (hidden_states + output) + block.mlp(normed), pattern

    block.forward = forward
    return bridge


_PRODUCTS = ("attn", "attn.q", "attn.o", "mlp", "mlp.in", "mlp.out", "block", "unembed")
_MLP = ("mlp", "block")
_NORM = ("ln1", "ln_final", "block")

VARIANTS = (
    *(
        Variant(candidate, _PRODUCTS)
        for candidate in (
            *(row_by_row, permuted_sum, split_k, bias_first, products_in_float64, strided_weights),
            *(one_thread, two_threads),
        )
    ),
    *(
        Variant(candidate, ATTENTION)
        for candidate in (
            *(FusedProjection, StoredFusedProjection, BatchReversed, HeadByHead, ContiguousHeads, StridedHeads),
            *(ReciprocalScale, MaskInProduct, SoftmaxByHand, SoftmaxByLogarithm, MixedInFloat32, AttentionInFloat64),
        )
    ),
    Variant(layer_norm_by_hand, _NORM),
    Variant(default_layer_norm, _NORM),
    Variant(gelu_by_hand, _MLP),
    Variant(gelu_in_float32, _MLP),
    Variant(residual_first, ("block",)),
)
"""None may be flagged, in any dtype."""
