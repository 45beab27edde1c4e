"""Correct candidates that do what hidden faults do, and do it right: blocks, kept tables, strides, recomputation.

None of them may fail in any case, in any dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint
from transformer_lens.hook_points import HookPoint

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.plan.cases import WHOLE
from cgverify.selftest.candidates import ATTENTION, Rows, Variant, by_name, named_variants
from cgverify.selftest.seeded.autocast import outside_autocast
from cgverify.selftest.seeded.seeding import (
    NORMS,
    attention,
    changed,
    computed,
    rebuilt,
    returning,
    strided,
    widened,
)


def _online_softmax(_: Any, softmax: Any, scores: Tensor) -> Any:
    """Take blocks of three keys, and rescale what was added up when a later block has a greater maximum."""
    if scores.dtype == torch.float64 or not scores.isfinite().all():
        return softmax(scores)
    scores = widened(scores)
    greatest, total = scores[..., :1], torch.zeros_like(scores[..., :1])
    for part in scores.split(3, -1):
        later = torch.maximum(greatest, part.amax(-1, keepdim=True))
        total = total * (greatest - later).exp() + (part - later).exp().sum(-1, keepdim=True)
        greatest = later
    return (scores - greatest).exp() / total


def _blocks_of_queries(_: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    masks = mask.expand(-1, -1, query.shape[2], -1).split(3, 2)
    return torch.cat([scores(part, key, each) for part, each in zip(query.split(3, 2), masks, strict=True)], 2)


def _mask_by_content(bridge: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    kept = bridge.__dict__.get("_mask")
    if mask.requires_grad or kept is None or kept.dtype != mask.dtype or not torch.equal(kept, mask):
        kept = mask
        bridge.__dict__["_mask"] = None if mask.requires_grad else mask.clone()
    return scores(query, key, kept)


def _angles_by_content(bridge: Any, rotate: Any, query: Tensor, key: Tensor, positions: Tensor, *others: Any) -> Any:
    kept = bridge.__dict__.get("_positions")
    if kept is None or kept[0].device != positions.device or not torch.equal(kept[0], positions):
        kept = bridge.__dict__["_positions"] = positions.clone(), positions
    return rotate(query, key, kept[0], *others)


def _scores_recomputed(_: Any, scores: Any, *args: Tensor) -> Any:
    return checkpoint(scores, *args, use_reentrant=False) if torch.is_grad_enabled() else scores(*args)


def _mix_recomputed(_: Any, mix: Any, *args: Tensor) -> Any:
    return checkpoint(mix, *args, use_reentrant=False) if torch.is_grad_enabled() else mix(*args)


class _Softmax(Function):
    """A softmax with a backward pass and a forward derivative of its own, which can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        pattern = scores.softmax(-1)
        ctx.save_for_backward(pattern)
        ctx.save_for_forward(pattern)
        return pattern

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (pattern,), (gradient,) = ctx.saved_tensors, gradients
        return pattern * (gradient - (pattern * gradient).sum(-1, keepdim=True))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        (pattern,), (tangent,) = ctx.saved_tensors, tangents
        return pattern * (tangent - (pattern * tangent).sum(-1, keepdim=True))


def _own_softmax(_: Any, softmax: Any, scores: Tensor) -> Any:
    return _Softmax.apply(scores) if torch.is_grad_enabled() else softmax(scores)  # type: ignore[no-untyped-call]


def _mask_of_each_head(_: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    return scores(query, key, mask.repeat(1, query.shape[1] // mask.shape[1], 1, 1))


def _cached_before_new(bridge: Any, extend: Any, cache: Any, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    start, new = int(cache.get_seq_length(bridge._layer_idx)), key.shape[2]
    keys, values = extend(cache, key, value)
    parts = (keys[:, :, :start], key.to(keys.dtype), keys[:, :, start + new :])
    return torch.cat(parts, 2), values


class ExtraHooks(CodeGenAttentionBridge):
    """There are more hooks than the reference has tensors: `hook_mask`, and `hook_unused`, which never fires."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hook_mask, self.hook_unused = HookPoint(), HookPoint()

    def _scores(self, query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        return super()._scores(query, key, self.hook_mask(mask))


def _strided_rotation(_: Any, rotate: Any, *args: Any) -> tuple[Tensor, Tensor]:
    query, key = rotate(*args)
    return strided(query), strided(key)


def _strided_pattern(_: Any, pattern_of: Any, *args: Any) -> Any:
    return strided(pattern_of(*args))


def _strided_output(_: Any, output: Any, z: Tensor) -> Any:
    return output(z).transpose(0, 1).contiguous().transpose(0, 1)


def _logits_in_blocks(linear: nn.Linear, x: Tensor) -> Tensor:
    biases = [None] * 4 if linear.bias is None else linear.bias.chunk(4)
    parts = zip(linear.weight.chunk(4), biases, strict=True)
    return torch.cat([nn.functional.linear(x, weight, bias) for weight, bias in parts], -1)


def _norm_of_each_row(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return torch.stack([nn.LayerNorm.forward(norm, row) for row in x])


def _rows_by_content(table: nn.Embedding, ids: Tensor) -> Tensor:
    different, places = ids.unique(return_inverse=True)
    return nn.functional.embedding(different, table.weight)[places]


def _row_by_product(table: nn.Embedding, ids: Tensor) -> Tensor:
    chosen = nn.functional.one_hot(ids, table.num_embeddings)
    with outside_autocast(table.weight):
        return chosen.to(table.weight.dtype) @ table.weight


def _tokens_in_threes(linear: nn.Linear, x: Tensor) -> Tensor:
    """Compute contiguous copies: given a strided slice, torch rounds the product before it adds the bias."""
    parts = [part.contiguous() for part in x.split(3, -2)]
    return torch.cat([nn.functional.linear(part, linear.weight, linear.bias) for part in parts], -2)


def _weight_by_version(linear: nn.Linear, x: Tensor) -> Tensor:
    """Keep a transposed copy of the weight until the weight is edited, replaced, moved or differentiated."""
    weight = linear.weight
    if torch.is_grad_enabled() and weight.requires_grad:
        return nn.functional.linear(x, weight, linear.bias)
    kept = linear.__dict__.get("_transposed")
    if kept is None or kept.dtype != weight.dtype or not torch.equal(kept.T, weight):
        kept = linear.__dict__["_transposed"] = weight.detach().T.contiguous()
    return nn.functional.linear(x, kept.T, linear.bias)


def _refused_without_gradients(bridge: Any, forward: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        if hidden_states.shape[-1] != bridge.original_component.out_proj.in_features:
            raise ValueError("hidden states of another width")
    return forward(hidden_states, *args, **kwargs)


def _result_by_content(linear: nn.Linear, x: Tensor) -> Tensor:
    """Keep the last result until another input is given, or the weights are edited; under autocast, none."""
    if torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type):
        return nn.functional.linear(x, linear.weight, linear.bias)
    operands, kept = (x, linear.weight, linear.bias), linear.__dict__.get("_last")
    if kept is None or not all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(kept[0], operands, strict=True)
    ):
        kept = linear.__dict__["_last"] = [each.clone() for each in operands], nn.functional.linear(*operands)
    return kept[1].clone()


def _detached(name: str) -> property:
    return property(lambda mlp: mlp.get_submodule(name).weight.detach().T)


def _detached_names(bridge: Any) -> None:
    mlp = bridge.blocks[0].mlp
    mlp.__class__ = type(type(mlp).__name__, (type(mlp),), {"W_in": _detached("in"), "W_out": _detached("out")})


def _row_by_row(bridge: Any) -> None:
    """Leave out the padding of each row of a batch, and return zeros in its place."""
    forward = bridge.forward

    def alone(input: Any, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        if args or kwargs or attention_mask is None or bridge.training:
            return forward(input, *args, attention_mask=attention_mask, **kwargs)
        rows = [forward(ids[seen].unsqueeze(0))[0] for ids, seen in zip(input, attention_mask.bool(), strict=True)]
        return torch.stack([nn.functional.pad(row, (0, 0, input.shape[1] - len(row), 0)) for row in rows])

    bridge.forward = alone


def _without_a_cache(bridge: Any) -> None:
    generate = bridge.generate
    bridge.generate = lambda *args, **kwargs: generate(*args, **kwargs | {"use_past_kv_cache": False})


def _stops_at_the_end(bridge: Any) -> None:
    """Run all layers, and return what a hook has kept."""
    forward = bridge.forward

    def stopped(*args: Any, stop_at_layer: int | None = None, **kwargs: Any) -> Any:
        if stop_at_layer is None:
            return forward(*args, **kwargs)
        kept: list[Tensor] = []
        point = bridge.blocks[stop_at_layer].hook_in
        point.add_hook(lambda tensor, hook: kept.append(tensor.clone()))  # noqa: ARG005
        forward(*args, **kwargs)
        point.remove_hooks()
        return kept[0]

    bridge.forward = stopped


_ATTENTION: Rows = {
    "OnlineSoftmax": (
        "The softmax adds up blocks of three keys, and rescales earlier ones to a greater maximum.",
        attention(_masked_softmax=_online_softmax),
    ),
    "QueriesInBlocks": (
        "Scores are computed for three queries at a time, with their rows of the mask.",
        attention(_scores=_blocks_of_queries),
    ),
    "MaskKeptByContent": (
        "The last mask is kept, and used again if a new one is equal to it.",
        attention(_scores=_mask_by_content),
    ),
    "AnglesKeptByContent": (
        "The last positions are kept, and used again if new ones are equal to them.",
        attention(_rotate=_angles_by_content),
    ),
    "RecomputedInBackward": (
        "Scores and z are computed once more in the backward pass.",
        attention(_scores=_scores_recomputed, _mix=_mix_recomputed),
    ),
    "SoftmaxWithOwnDerivatives": (
        "The softmax has a backward pass and a forward derivative of its own.",
        attention(_masked_softmax=_own_softmax),
    ),
    "MaskOfEachHead": ("The mask is repeated for each head.", attention(_scores=_mask_of_each_head)),
    "CachedBeforeNew": (
        "Keys that were cached and new ones are put together outside the cache.",
        attention(_extend_cache=_cached_before_new),
    ),
    "ReturnedCopy": (
        "A copy of the pattern is returned, through which its gradient goes.",
        returning(lambda output, pattern: (output, pattern.clone())),
    ),
    "StridedTensors": (
        "Rotated q and k, the pattern and the output are not contiguous, also where hooks see them.",
        attention(_rotate=_strided_rotation, _pattern_of=_strided_pattern, _output=_strided_output),
    ),
    "CastsReturnedPatterns": (
        "A pattern that a hook returns in another dtype is cast to the dtype of the values.",
        attention(_mix=lambda _, mix, pattern, value: mix(pattern.to(value.dtype), value)),
    ),
    "RefusesWithoutGradients": (
        "Hidden states of another width are refused while autograd is off, which is on again afterwards.",
        attention(forward=_refused_without_gradients),
    ),
    "NoRandomInputs": (
        "There is no `get_random_inputs`.",
        type("Seeded", (CodeGenAttentionBridge,), {"get_random_inputs": None}),
    ),
}
_LINEARS: Rows = {
    "mlp_in_by_threes": ("`fc_in` runs on three tokens at a time.", computed(_tokens_in_threes, "blocks.0.mlp.in")),
    "weight_kept_by_content": (
        "`fc_out` keeps a transposed copy of its weight, as long as the weight is equal to it.",
        computed(_weight_by_version, "blocks.0.mlp.out"),
    ),
    "mlp_in_by_content": (
        "`fc_in` keeps its last result, as long as its input and its weights are equal to the last ones.",
        computed(_result_by_content, "blocks.0.mlp.in"),
    ),
    "weights_by_detached_views": ("`W_in` and `W_out` are views without autograd.", changed(_detached_names)),
}
_NORMS: Rows = {"norm_of_each_row": ("Layer norms run on one sequence at a time.", computed(_norm_of_each_row, *NORMS))}
_EMBEDDINGS: Rows = {
    "embedding_of_different_ids": ("Each different id is looked up once.", computed(_rows_by_content, "embed")),
    "embedding_by_product": ("Rows are the product of a matrix of 0 and 1.", computed(_row_by_product, "embed")),
}
_UNEMBEDDINGS: Rows = {
    "logits_in_blocks": (
        "Logits are computed for a quarter of the vocabulary at a time.",
        computed(_logits_in_blocks, "unembed"),
    ),
}

_MODELS: Rows = {
    "rows_alone": ("Rows of a batch run one by one, without their padding.", rebuilt(_row_by_row)),
    "generates_without_a_cache": ("`generate` computes all tokens again in each step.", rebuilt(_without_a_cache)),
    "stops_at_the_end": ("`stop_at_layer` runs all layers.", rebuilt(_stops_at_the_end)),
}

VARIANTS = (
    Variant(ExtraHooks, ATTENTION),
    *named_variants(
        __name__,
        (_ATTENTION, ATTENTION),
        (_LINEARS, ("mlp", "mlp.in", "mlp.out", "block")),
        (_NORMS, ("ln1", "ln_final", "block")),
        (_EMBEDDINGS, ("embed",)),
        (_UNEMBEDDINGS, ("unembed",)),
        (_MODELS, WHOLE),
    ),
)
__getattr__ = by_name(VARIANTS)
