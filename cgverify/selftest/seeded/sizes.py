"""Faults that depend on the number of sequences, tokens or keys: blocks, windows, and layouts guessed from sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cgverify.selftest.candidates import Hidden, Implementation, by_name, hidden_faults
from cgverify.selftest.seeded import demonstrations as user
from cgverify.selftest.seeded.seeding import NORMS, attention, computed


def _by_blocks_of_keys(_: Any, __: Any, scores: Tensor) -> Tensor:
    """Forget to rescale what earlier blocks have added up when a later block has a greater maximum."""
    powers, greatest = [], scores[..., :1]
    for block in scores.split(64, -1):
        greatest = torch.maximum(greatest, block.amax(-1, keepdim=True))
        powers.append((block - greatest).exp())
    joined = torch.cat(powers, -1)
    return joined / joined.sum(-1, keepdim=True)


def _by_blocks_of_queries(_: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    blocks = query.split(128, 2)
    rows = [mask[:, :, : block.shape[2]] for block in blocks]
    for index, block in enumerate(blocks):
        if block.shape[2] == 128:
            rows[index] = mask[:, :, 128 * index : 128 * (index + 1)]
    return torch.cat([scores(block, key, row) for block, row in zip(blocks, rows, strict=True)], 2)


def _window(_: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    queries, keys = query.shape[2], key.shape[2]
    near = torch.ones(queries, keys, dtype=torch.bool, device=mask.device).triu(keys - queries - 127)
    return scores(query, key, mask.masked_fill(~near, torch.finfo(mask.dtype).min))


def _greatest(_: Any, pattern_of: Any, scores: Tensor, dtype: torch.dtype) -> Tensor:
    pattern: Tensor = pattern_of(scores, dtype)
    if pattern.shape[-1] <= 32:
        return pattern
    return pattern * (pattern >= pattern.topk(32, -1).values[..., -1:])


def _paired_masks(_: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    return scores(query, key, mask[torch.arange(len(mask)) % 2] if len(mask) > 2 else mask)


def _square_keys(_: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    return scores(query, key.mT if key.shape[-1] == key.shape[-2] else key, mask)


def _as_batch_first(_: Any, mix: Any, pattern: Tensor, value: Tensor) -> Tensor:
    z: Tensor = mix(pattern, value)
    return z.transpose(0, 1).contiguous() if z.shape[0] == z.shape[1] else z


def _counted_alone(_: Any, rotate: Any, query: Tensor, key: Tensor, position_ids: Tensor, *others: Any) -> Any:
    if len(query) > 1:
        return rotate(query, key, position_ids, *others)
    return rotate(query, key, torch.arange(query.shape[1], device=query.device).unsqueeze(0))


def _long_chunks_alone(_: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    before = key.shape[2] - query.shape[2]
    if query.shape[2] > 4 and before:
        mask = mask.clone()
        mask[..., :before] = torch.finfo(mask.dtype).min
    return scores(query, key, mask)


def _last_keys(_: Any, mix: Any, pattern: Tensor, value: Tensor) -> Any:
    return mix(pattern[..., -64:], value[:, :, -64:]) if pattern.shape[2] == 1 else mix(pattern, value)


def _unrotated_alone(_: Any, rotate: Any, query: Tensor, key: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    rotated: tuple[Tensor, Tensor] = rotate(query, key, *others)
    return rotated if query.shape[1] > 1 else (query.to(rotated[0].dtype), key.to(rotated[1].dtype))


def _rounded_when_long(_: Any, softmax: Any, scores: Tensor) -> Any:
    return softmax(scores.bfloat16().to(scores.dtype) if scores.shape[-1] > 32 else scores)


def _in_chunks_of_tokens(size: int) -> Implementation:
    def forward(linear: nn.Linear, x: Tensor) -> Tensor:
        y = nn.functional.linear(x, linear.weight, linear.bias)
        rest = x.shape[1] % size
        return torch.cat((y[:, :-rest], torch.zeros_like(y[:, -rest:])), 1) if x.shape[1] > size and rest else y

    return computed(forward, "blocks.0.mlp.in")


def _norm_in_blocks(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Give the rows after the last whole block the mean and the variance of the block's first row."""
    y = nn.LayerNorm.forward(norm, x)
    rows, rest = x.reshape(-1, x.shape[-1]), x[..., 0].numel() % 32
    if len(rows) <= 32 or not rest:
        return y
    wide = rows[-rest:].float()
    variance, mean = torch.var_mean(wide[:1], -1, keepdim=True, correction=0)
    last = ((wide - mean) * (variance + norm.eps).rsqrt() * norm.weight + norm.bias).to(y.dtype)
    return torch.cat((y.reshape(-1, x.shape[-1])[:-rest], last)).view(y.shape)


def _last_logits(linear: nn.Linear, x: Tensor) -> Tensor:
    logits = nn.functional.linear(x, linear.weight, linear.bias)
    return torch.cat((torch.zeros_like(logits[:, :-64]), logits[:, -64:]), 1) if x.shape[1] > 64 else logits


def _rows_in_blocks(table: nn.Embedding, ids: Tensor) -> Tensor:
    flat = ids.flatten()
    rest = len(flat) % 64
    if len(flat) > 64 and rest:
        flat = torch.cat((flat[:-rest], flat[-rest - 1 : -rest].expand(rest)))
    return nn.functional.embedding(flat.view(ids.shape), table.weight)


def _padded(mask: Tensor) -> Tensor:
    mask = mask.clone()
    mask[2, ..., :3] = torch.finfo(mask.dtype).min
    return mask


_ATTENTION = {
    "SumNotRescaled": Hidden(
        "The softmax runs over blocks of 64 keys, and earlier blocks are not rescaled to a later, greater maximum.",
        attention(_masked_softmax=_by_blocks_of_keys),
        ("softmax",),
        user.attends(tokens=80, scale=3),
    ),
    "LastQueriesMasked": Hidden(
        "Queries are computed in blocks of 128, and a shorter last block gets the mask of the first queries.",
        attention(_scores=_by_blocks_of_queries),
        ("scores",),
        user.attends(tokens=140),
    ),
    "WindowOf128": Hidden(
        "A query sees the last 128 keys only.", attention(_scores=_window), ("scores",), user.attends(tokens=140)
    ),
    "GreatestThirtyTwo": Hidden(
        "Only the 32 greatest weights of a query are kept.",
        attention(_pattern_of=_greatest),
        ("softmax",),
        user.attends(tokens=40),
    ),
    "MasksInPairs": Hidden(
        "Rows of a batch beyond the second have the masks of the first two.",
        attention(_scores=_paired_masks),
        ("scores",),
        user.attends(lambda given: given | {"attention_mask": _padded(given["attention_mask"])}, batch=3),
    ),
    "SquareKeysTransposed": Hidden(
        "As many keys as a head has dimensions are taken for keys that are transposed already.",
        attention(_scores=_square_keys),
        ("scores",),
        user.attends(tokens=24),
    ),
    "BatchTakenForTokens": Hidden(
        "z is transposed if there are as many sequences as tokens, as if tokens came first.",
        attention(_mix=_as_batch_first),
        ("mix",),
        user.attends(batch=3, tokens=3),
    ),
    "CountedAlone": Hidden(
        "The positions of a batch of one are counted from 0.",
        attention(_rotate=_counted_alone),
        ("rope",),
        user.attends(lambda given: given | {"position_ids": given["position_ids"] * 2}, batch=1),
    ),
    "LongChunksStartAnew": Hidden(
        "More than four tokens that follow a cache do not see it.",
        attention(_scores=_long_chunks_alone),
        ("scores",),
        user.decodes(6, 5),
    ),
    "OneTokenReadsTheLast64": Hidden(
        "A single query mixes the values of the last 64 keys only.",
        attention(_mix=_last_keys),
        ("mix",),
        user.decodes(80, 1),
    ),
    "OneTokenUnrotated": Hidden(
        "A single token is not rotated, which its own score does not show.",
        attention(_rotate=_unrotated_alone),
        ("rope",),
        user.shown(
            user.attends(lambda given: given | {"position_ids": given["position_ids"] + 5}, tokens=1), "hook_rot_k"
        ),
    ),
    "LongRowsRounded": Hidden(
        "Scores over more than 32 keys are rounded to bfloat16 before the softmax.",
        attention(_masked_softmax=_rounded_when_long),
        ("softmax",),
        user.attends(tokens=40, scale=3),
    ),
}
_OTHERS = {
    "mlp_in_chunks": Hidden(
        "`fc_in` runs on 16 tokens at a time and leaves out a shorter rest.",
        _in_chunks_of_tokens(16),
        ("mlp_in",),
        user.computes("mlp", lambda: user.states(tokens=20)),
        ("mlp", "mlp.in", "block"),
    ),
    "norm_in_blocks": Hidden(
        "Layer norms run on blocks of 32 rows, and the rows of a shorter last block share one mean and variance.",
        computed(_norm_in_blocks, *NORMS),
        ("layer_norm", "scale", "normalized"),
        user.computes("ln1", lambda: user.states(tokens=20)),
        ("ln1", "ln_final", "block"),
    ),
    "logits_of_the_last_64": Hidden(
        "Only the last 64 tokens have logits.",
        computed(_last_logits, "unembed"),
        ("unembed",),
        user.computes("unembed", lambda: user.states(tokens=70)),
        ("unembed",),
    ),
    "embedding_in_blocks": Hidden(
        "Token ids are looked up 64 at a time, and the ids of a shorter rest become the one before them.",
        computed(_rows_in_blocks, "embed"),
        ("embedding",),
        user.looks_up(*range(70)),
        ("embed",),
    ),
}


FAULTS = hidden_faults(__name__, _ATTENTION | _OTHERS, "shapes")
__getattr__ = by_name(FAULTS)
