"""Wrong splits of the fused QKV weight, and wrong heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from cgverify.bridge.qkv_layout import split_weight
from cgverify.selftest.candidates import Implementation, Rows, by_name, named_faults
from cgverify.selftest.seeded.seeding import attention, changed, reweighted

Weights = tuple[Tensor, Tensor, Tensor]


def _split_by(split: Callable[[Tensor, int], Weights]) -> Implementation:
    """Split the fused weight `[3 * d_model, d_model]` by a function of it and the number of heads.

    The function returns the weights of Q, K and V, `[d_model, d_model]` each.
    """

    def linears(original: Any) -> tuple[nn.Linear, ...]:
        made = []
        for weight in split(original.qkv_proj.weight.detach(), original.num_attention_heads):
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
            made.append(linear)
        return tuple(made)

    return attention(
        __init__=lambda _, init, *args, **kwargs: init(*args, **{**kwargs, "split_qkv_matrix": linears}),
    )


def _reordered(order: str) -> Implementation:
    """Take as Q, K and V the weights that `order` names."""

    def split(fused: Tensor, _: int) -> Weights:
        query, key, value = (dict(zip("QKV", split_weight(fused), strict=True))[name] for name in order)
        return query, key, value

    return _split_by(split)


def _partitioned(partitions: int) -> Implementation:
    """Split the fused weight as a number of partitions, each with its rows of Q, V and K."""

    def split(fused: Tensor, _: int) -> Weights:
        d_model = fused.shape[1]
        parts = fused.reshape(partitions, 3, d_model // partitions, d_model)
        query, value, key = (parts[:, i].reshape(d_model, d_model) for i in range(3))
        return query, key, value

    return _split_by(split)


def _two_rows_swapped(fused: Tensor, heads: int) -> Weights:
    query, key, value = split_weight(fused)
    first = len(key) // heads
    key[[first, first + 1]] = key[[first + 1, first]]
    return query, key, value


def _last_partition_swapped(fused: Tensor, _: int) -> Weights:
    query, key, value = split_weight(fused)
    last = slice(-(len(query) // 4), None)
    query[last], key[last] = key[last].clone(), query[last].clone()
    return query, key, value


def _interleaved(fused: Tensor, heads: int) -> Weights:
    query, key, value = (w.unflatten(0, (-1, heads)).transpose(0, 1).flatten(0, 1) for w in split_weight(fused))
    return query, key, value


def _value_head_repeated(fused: Tensor, heads: int) -> Weights:
    query, key, value = split_weight(fused)
    by_head = value.unflatten(0, (heads, -1))
    by_head[3] = by_head[2]
    return query, key, value


def _one_row_missing(fused: Tensor, _: int) -> Weights:
    query, key, value = split_weight(fused)
    query[-1] = 0
    return query, key, value


def _roll_heads(bridge: Any) -> None:
    weight = bridge.blocks[0].attn.o.original_component.weight
    weight.data = weight.data.unflatten(1, (bridge.cfg.n_heads, -1)).roll(1, 1).flatten(1)


_QUERY_AND_KEY: Rows = {
    "QueryKeySwapped": ("Q and K are exchanged.", _reordered("KQV")),
    "LastPartitionSwapped": ("Q and K are exchanged in the last quarter.", _split_by(_last_partition_swapped)),
}
_KEY_AND_VALUE: Rows = {
    "QueryKeyValueOrder": ("A partition is read as [Q, K, V], which exchanges K and V.", _reordered("QVK")),
}
_QUERY_AND_VALUE: Rows = {"QueryValueSwapped": ("A partition is read as [V, Q, K].", _reordered("VKQ"))}
_ALL_THREE: Rows = {
    "ValueKeyQueryOrder": ("A partition is read as [K, Q, V], so that all three are wrong.", _reordered("VQK")),
    "KeyValueQueryOrder": ("A partition is read as [V, K, Q], so that all three are wrong.", _reordered("KVQ")),
    "OnePartition": ("The weight is split as one partition: all of Q, all of V, all of K.", _partitioned(1)),
    "TwoPartitions": ("The weight is split as two partitions.", _partitioned(2)),
    "EightPartitions": ("The weight is split as eight partitions.", _partitioned(8)),
    "HeadsInterleaved": (
        "Rows of a weight are read as `[head_dim, heads]` instead of `[heads, head_dim]`.",
        _split_by(_interleaved),
    ),
}
_KEY: Rows = {"OneHeadsRowsSwapped": ("Two rows of head 1 of K are exchanged.", _split_by(_two_rows_swapped))}
_VALUE: Rows = {
    "ValueHeadRepeated": ("Head 3 has the values of head 2, as with grouped queries.", _split_by(_value_head_repeated)),
}
_QUERY: Rows = {
    "OneRowMissing": ("The last row of Q is 0, as after a copy that stops one row early.", _split_by(_one_row_missing)),
}
_OUTPUT: Rows = {
    "output_transposed": (
        "The weight of `out_proj` is transposed.",
        reweighted("blocks.0.attn.o", lambda weight: weight.T.contiguous()),
    ),
    "output_heads_reordered": ("`out_proj` reads the heads of z in another order.", changed(_roll_heads)),
}
_KINDS = ("attn", "attn.q", "attn.k", "attn.v", "block")

FAULTS = (
    *named_faults(__name__, _QUERY_AND_KEY, "project_q", "project_k", kinds=_KINDS),
    *named_faults(__name__, _KEY_AND_VALUE, "project_k", "project_v", kinds=_KINDS),
    *named_faults(__name__, _QUERY_AND_VALUE, "project_q", "project_v", kinds=_KINDS),
    *named_faults(__name__, _ALL_THREE, "project_q", "project_k", "project_v", kinds=_KINDS),
    *named_faults(__name__, _KEY, "project_k", kinds=_KINDS),
    *named_faults(__name__, _VALUE, "project_v", kinds=_KINDS),
    *named_faults(__name__, _QUERY, "project_q", kinds=_KINDS),
    *named_faults(__name__, _OUTPUT, "output", kinds=("attn", "attn.o", "block")),
)
__getattr__ = by_name(FAULTS)
