"""Correct candidates that compute the bridge's functions in another way: other roundings, within the same bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components import NormalizationBridge

from cgverify.bridge.qkv_layout import PARTITIONS
from cgverify.selftest import tempting
from cgverify.selftest.candidates import ATTENTION, Implementation, Rows, by_name, named_variants
from cgverify.selftest.seeded.autocast import outside_autocast, product_dtype
from cgverify.selftest.seeded.block import block
from cgverify.selftest.seeded.seeding import (
    NORMS,
    activated,
    attention,
    changed,
    computed,
    scales_before_mask,
    strided,
    widened,
)

ProductFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A product of an input and a weight, plus a bias unless that is None, all in one dtype."""

LOG2_E = math.log2(math.e)

PRODUCTS = (*(f"blocks.0.attn.{name}" for name in "qkvo"), "blocks.0.mlp.in", "blocks.0.mlp.out", "unembed")
"""The paths of the Linears of a block, and of the unembedding."""


def taken(operand: Tensor) -> Tensor:
    """Cast an operand to the dtype in which autocast would multiply it."""
    return operand.to(product_dtype(operand))


def _multiplied(product: ProductFunction) -> Implementation:
    """Compute every Linear by a function, of operands that are cast as autocast would cast them."""

    def forward(linear: nn.Linear, x: Tensor) -> Tensor:
        operands = taken(x), taken(linear.weight), None if linear.bias is None else taken(linear.bias)
        with outside_autocast(x):
            return product(*operands)

    return computed(forward, *PRODUCTS)


def _row_by_row(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = [nn.functional.linear(row, weight, bias) for row in x.reshape(-1, x.shape[-1])]
    return torch.stack(rows).reshape(*x.shape[:-1], -1)


def _permuted_sum(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    order = torch.randperm(x.shape[-1], generator=torch.Generator().manual_seed(0)).to(x.device)
    return nn.functional.linear(x[..., order], weight[:, order], bias)


def _split_k(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    parts = zip(widened(x).chunk(4, -1), widened(weight).chunk(4, -1), strict=True)
    total = torch.stack([a @ b.T for a, b in parts]).sum(0)
    return (total if bias is None else total + bias).to(x.dtype)


def _bias_first(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    start = 0 if bias is None else widened(bias)
    return (start + widened(x) @ widened(weight).T).to(x.dtype)


def _in_float64(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double()).to(x.dtype)


def _with_threads(number: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        return nn.functional.linear(x, weight, bias)
    finally:
        torch.set_num_threads(before)


def _transpose_weights(bridge: Any) -> None:
    for path in PRODUCTS:
        weight = getattr(bridge.get_submodule(path).original_component, "weight", None)
        if weight is not None:  # out of view, q, k and v are parts of one product
            weight.data = weight.data.T.contiguous().T


def _projected(fused: Callable[[Any, Tensor], tuple[Tensor, ...]]) -> Implementation:
    """Compute q, k and v, `[batch, seq, d_model]` each, by a function of the bridge and the hidden states.

    The function is not used if a hook gives one of them an input of its own.
    """

    def project(bridge: Any, inherited: Any, hidden_states: Tensor) -> Any:
        if bridge._is_split_qkv_fork_active():
            return inherited(hidden_states)
        projections = (bridge.q, bridge.k, bridge.v)
        inputs = [projection.hook_in(hidden_states) for projection in projections]
        if all(x is hidden_states for x in inputs):
            parts = fused(bridge, hidden_states)
        else:
            parts = tuple(p.original_component(x) for p, x in zip(projections, inputs, strict=True))
        return tuple(
            projection.hook_out(part).unflatten(-1, (bridge.config.n_heads, -1))
            for projection, part in zip(projections, parts, strict=True)
        )

    return attention(_project=project)


def _joined_weights(bridge: Any, hidden_states: Tensor) -> tuple[Tensor, ...]:
    weight = torch.cat([p.original_component.weight for p in (bridge.q, bridge.k, bridge.v)])
    return nn.functional.linear(hidden_states, weight).chunk(3, -1)


def _stored_weight(bridge: Any, hidden_states: Tensor) -> tuple[Tensor, ...]:
    if torch.is_grad_enabled():
        return tuple(each.original_component(hidden_states) for each in (bridge.q, bridge.k, bridge.v))
    stored = bridge.original_component.qkv_proj
    weight = getattr(stored, "original_component", stored).weight  # not by a call, at which hooks of `qkv` would fire
    parts = nn.functional.linear(hidden_states, weight).unflatten(-1, (PARTITIONS, 3, -1))
    query, value, key = (parts[..., i, :].flatten(-2) for i in range(3))
    return query, key, value


def _scores_row_reversed(_: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    rows = mask.expand(len(query), -1, -1, -1)
    return scores(query.flip(0), key.flip(0), rows.flip(0)).flip(0)


def _by_head(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(tensor.split(1, 1) for tensor in tensors), strict=True))


def _reciprocal_scale(bridge: Any, _scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    product, root = query.to(torch.float32) @ key.to(torch.float32).transpose(-1, -2), math.sqrt(query.shape[-1])
    if scales_before_mask(bridge):
        return product / root + mask
    return (product + mask) * (1 / root)


def _mask_in_product(bridge: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    if torch.is_autocast_enabled(query.device.type):
        return scores(query, key, mask)
    q, k = query.to(torch.float32).flatten(0, 1), key.to(torch.float32).flatten(0, 1)
    start = widened(mask).expand(*query.shape[:2], -1, -1).flatten(0, 1)
    operands, root = (start, q.to(start.dtype), k.to(start.dtype).mT), math.sqrt(query.shape[-1])
    scaled_first = scales_before_mask(bridge)
    scores = torch.baddbmm(*operands, alpha=1 / root) if scaled_first else torch.baddbmm(*operands) / root
    return scores.reshape(*query.shape[:2], *scores.shape[1:])


def _softmax_by_hand(_bridge: Any, _softmax: Any, scores: Tensor) -> Tensor:
    powers = (widened(scores) - widened(scores).amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


def _softmax_by_logarithm(_bridge: Any, _softmax: Any, scores: Tensor) -> Tensor:
    shifted = widened(scores) - widened(scores).amax(-1, keepdim=True)
    return (shifted - shifted.exp().sum(-1, keepdim=True).log()).exp()


def _softmax_by_exp2(_bridge: Any, _softmax: Any, scores: Tensor) -> Tensor:
    powers = ((widened(scores) - widened(scores).amax(-1, keepdim=True)) * LOG2_E).exp2()
    return powers / powers.sum(-1, keepdim=True)


def _softmax_by_fused_exp2(_bridge: Any, _softmax: Any, scores: Tensor) -> Tensor:
    """Emulate a fused multiply-add in float64, where the product of two float32 is exact."""
    wide = widened(scores)
    if wide.dtype == torch.float64:
        return _softmax_by_exp2(_bridge, _softmax, scores)
    constant = torch.tensor(LOG2_E)
    shift = wide.amax(-1, keepdim=True) * constant
    exponents = (wide.double() * constant.double() - shift.double()).float()
    # In a row that sees nothing, the rounding of max · log2(e) is larger than every difference.
    powers = torch.where(shift.abs() > 1e6, (wide - wide.amax(-1, keepdim=True)) * constant, exponents).exp2()
    return powers / powers.sum(-1, keepdim=True)


def _mix_in_float32(_: Any, mix: Any, pattern: Tensor, value: Tensor) -> Any:
    pattern, value = taken(pattern), taken(value)
    wide = torch.promote_types(value.dtype, torch.float32)
    with outside_autocast(value):
        return mix(pattern.to(wide), value.to(wide)).to(value.dtype)


def _scores_in_float64(bridge: Any, _scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    masked_and_scaled = partial(bridge._form.mask_and_scale, attention=bridge.original_component)
    if torch.is_autocast_enabled(query.device.type):
        query, key = taken(query.to(torch.float32)), taken(key.to(torch.float32))
        return masked_and_scaled((query.double() @ key.double().mT).to(query.dtype), mask)
    dtype = torch.promote_types(mask.dtype, torch.float32)
    return masked_and_scaled(query.double() @ key.double().transpose(-1, -2), mask.double()).to(dtype)


def _mix_in_float64(_: Any, mix: Any, pattern: Tensor, value: Tensor) -> Any:
    pattern, value = taken(pattern), taken(value)
    return mix(pattern.double(), value.double()).to(value.dtype)


def _norm_by_hand(module: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = widened(x) - widened(x).mean(-1, keepdim=True)
    normalized = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + module.eps)
    return (normalized * module.weight + module.bias).to(x.dtype)


def _use_default_norms(bridge: Any) -> None:
    for path in NORMS:
        norm = bridge.get_submodule(path)
        norm.__class__, norm.use_native_layernorm_autograd = NormalizationBridge, False


def _gelu_by_hand(_: Any, x: Tensor) -> Tensor:
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))
    return x * (0.5 * (1 + inner.tanh()))


_PRODUCTS: Rows = {
    "row_by_row": ("Every product is one matrix-vector product for each token.", _multiplied(_row_by_row)),
    "permuted_sum": ("Every product sums its terms in another order.", _multiplied(_permuted_sum)),
    "split_k": ("Every product is a sum of four, in the precision of the accumulator.", _multiplied(_split_k)),
    "bias_first": ("A bias is the first addend.", _multiplied(_bias_first)),
    "products_in_float64": ("Every product is computed in float64 and rounded once.", _multiplied(_in_float64)),
    "strided_weights": ("Weights are stored transposed.", changed(_transpose_weights)),
    "one_thread": ("Every product runs on one thread.", _multiplied(partial(_with_threads, 1))),
    "two_threads": ("Every product runs on two threads.", _multiplied(partial(_with_threads, 2))),
}
_ATTENTION: Rows = {
    "FusedProjection": ("Q, K and V are one product with their joined weights.", _projected(_joined_weights)),
    "StoredFusedProjection": (
        "The result of the stored fused weight is split, except with autograd, where it would get the gradient.",
        _projected(_stored_weight),
    ),
    "BatchReversed": (
        "Rows of the batch are computed in reverse order.",
        attention(
            _scores=_scores_row_reversed,
            _mix=lambda _, mix, pattern, value: mix(pattern.flip(0), value.flip(0)).flip(0),
        ),
    ),
    "HeadByHead": (
        "The scores and the z of each head are separate products.",
        attention(
            _scores=lambda _, scores, q, k, mask: torch.cat(
                [scores(*head) for head in _by_head(q, k, mask.expand(-1, q.shape[1], -1, -1))], 1
            ),
            _mix=lambda _, mix, pattern, value: torch.cat([mix(*head) for head in _by_head(pattern, value)], -1),
        ),
    ),
    "ContiguousHeads": (
        "Operands are contiguous as `[batch, heads, seq, head_dim]`, so that other kernels run.",
        attention(
            _scores=lambda _, scores, q, k, mask: scores(q.contiguous(), k.contiguous(), mask),
            _mix=lambda _, mix, pattern, value: mix(pattern, value.contiguous()),
        ),
    ),
    "StridedHeads": (
        "Operands are stored with the head dimension outermost.",
        attention(
            _scores=lambda _, scores, q, k, mask: scores(strided(q), strided(k), mask),
            _mix=lambda _, mix, pattern, value: mix(strided(pattern), strided(value)),
        ),
    ),
    "ReciprocalScale": (
        "Scores are multiplied by 1/√head_dim where Hugging Face divides by √head_dim, or the reverse.",
        attention(_scores=_reciprocal_scale),
    ),
    "MaskInProduct": (
        "The mask is the first addend of the product, except under autocast, which rounds the product first.",
        attention(_scores=_mask_in_product),
    ),
    "SoftmaxByHand": ("The softmax is exp(s − max) / Σ exp(s − max).", attention(_masked_softmax=_softmax_by_hand)),
    "SoftmaxByExp2": (
        "The softmax takes powers of 2, exp2((s − max)·log2(e)).",
        attention(_masked_softmax=_softmax_by_exp2),
    ),
    "SoftmaxByFusedExp2": (
        "The softmax takes powers of 2 of s·log2(e) − max·log2(e), rounded once, as fused kernels compute it.",
        attention(_masked_softmax=_softmax_by_fused_exp2),
    ),
    "SoftmaxByLogarithm": (
        "The softmax is exp(s − log Σ exp s), after the maximum is subtracted.",
        attention(_masked_softmax=_softmax_by_logarithm),
    ),
    "MixedInFloat32": ("Pattern and values are cast up, mixed and cast down.", attention(_mix=_mix_in_float32)),
    "AttentionInFloat64": (
        "Scores, softmax and mix are computed in float64 and rounded once; under autocast, scores are rounded twice.",
        attention(
            _scores=_scores_in_float64,
            _masked_softmax=lambda _, __, scores: scores.double().softmax(-1),
            _mix=_mix_in_float64,
        ),
    ),
}
_LAYER_NORMS: Rows = {
    "layer_norm_by_hand": (
        "Mean, variance, root, gain and bias are computed one after another.",
        computed(_norm_by_hand, *NORMS),
    ),
    "default_layer_norm": ("The layer norm is TransformerLens's own.", changed(_use_default_norms)),
}
_ACTIVATIONS: Rows = {
    "gelu_by_hand": (
        "gelu_new in another order of operations, each rounded in the dtype of the model.",
        activated(_gelu_by_hand),
    ),
    "gelu_in_float32": (
        "gelu_new in float32, rounded once: closer to the exact value than Hugging Face's own.",
        activated(lambda _, x: nn.functional.gelu(widened(x), approximate="tanh").to(x.dtype)),
    ),
}
_BLOCKS: Rows = {
    "residual_first": (
        "The block adds its input to the output of attention before that of the MLP.",
        block(total=lambda residual, _, attended, mlp: (residual + attended) + mlp),
    ),
}

VARIANTS = tempting.VARIANTS + named_variants(
    __name__,
    (_PRODUCTS, ("attn", "attn.q", "attn.o", "mlp", "mlp.in", "mlp.out", "block", "unembed")),
    (_ATTENTION, ATTENTION),
    (_LAYER_NORMS, ("ln1", "ln_final", "block")),
    (_ACTIVATIONS, ("mlp", "block")),
    (_BLOCKS, ("block",)),
)
"""None of them may fail, in any dtype."""
__getattr__ = by_name(VARIANTS)
