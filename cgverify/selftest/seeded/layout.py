"""Wrong ideas of the fused QKV weight, and wrong heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.bridge.qkv_layout import split_weight
from cgverify.selftest.entry import fault

Weights = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Layout(CodeGenAttentionBridge):
    """A bridge whose Q, K and V weights come from `weights`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["split_qkv_matrix"] = self._split
        super().__init__(*args, **kwargs)

    @classmethod
    def _split(cls, attention: Any) -> tuple[nn.Linear, ...]:
        linears = []
        for weight in cls.weights(attention.qkv_proj.weight.detach(), attention.num_attention_heads):
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
            linears.append(linear)
        return tuple(linears)

    @classmethod
    def weights(cls, fused: torch.Tensor, heads: int) -> Weights:
        """Q, K and V, `[d_model, d_model]` each, of a fused weight `[3 * d_model, d_model]`."""
        return split_weight(fused)


class QueryKeySwapped(Layout):
    """Q and K change places."""

    @classmethod
    def weights(cls, fused: torch.Tensor, heads: int) -> Weights:
        query, key, value = split_weight(fused)
        return key, query, value


class QueryKeyValueOrder(Layout):
    """[Q, K, V] in each partition, as everywhere else: K and V change places."""

    @classmethod
    def weights(cls, fused: torch.Tensor, heads: int) -> Weights:
        query, key, value = split_weight(fused)
        return query, value, key


class QueryValueSwapped(Layout):
    """[V, Q, K] in each partition."""

    @classmethod
    def weights(cls, fused: torch.Tensor, heads: int) -> Weights:
        query, key, value = split_weight(fused)
        return value, key, query


class ValueKeyQueryOrder(Layout):
    """[K, Q, V] in each partition: all three are another."""

    @classmethod
    def weights(cls, fused: torch.Tensor, heads: int) -> Weights:
        query, key, value = split_weight(fused)
        return value, query, key


class KeyValueQueryOrder(Layout):
    """[V, K, Q] in each partition: all three are another."""

    @classmethod
    def weights(cls, fused: torch.Tensor, heads: int) -> Weights:
        query, key, value = split_weight(fused)
        return key, value, query


class Partitions(Layout):
    """Another `mp_num`."""

    number = 4

    @classmethod
    def weights(cls, fused: torch.Tensor, heads: int) -> Weights:
        d_model = fused.shape[1]
        parts = fused.reshape(cls.number, 3, d_model // cls.number, d_model)
        query, value, key = (parts[:, i].reshape(d_model, d_model) for i in range(3))
        return query, key, value


class OnePartition(Partitions):
    """`mp_num = 1`: all of Q, all of V, all of K."""

    number = 1


class TwoPartitions(Partitions):
    """`mp_num = 2`."""

    number = 2


class EightPartitions(Partitions):
    """`mp_num = 8`."""

    number = 8


class OneHeadsRowsSwapped(Layout):
    """Two rows of head 1's key weight change places."""

    @classmethod
    def weights(cls, fused: torch.Tensor, heads: int) -> Weights:
        query, key, value = split_weight(fused)
        first = len(key) // heads
        key[[first, first + 1]] = key[[first + 1, first]]
        return query, key, value


class LastPartitionSwapped(Layout):
    """Q and K change places in the last quarter of the heads."""

    @classmethod
    def weights(cls, fused: torch.Tensor, heads: int) -> Weights:
        query, key, value = split_weight(fused)
        last = slice(-(len(query) // 4), None)
        query[last], key[last] = key[last].clone(), query[last].clone()
        return query, key, value


class HeadsInterleaved(Layout):
    """Rows of a weight are taken as `[head_dim, heads]` instead of `[heads, head_dim]`."""

    @classmethod
    def weights(cls, fused: torch.Tensor, heads: int) -> Weights:
        query, key, value = (w.unflatten(0, (-1, heads)).transpose(0, 1).flatten(0, 1) for w in split_weight(fused))
        return query, key, value


class ValueHeadRepeated(Layout):
    """Head 3 has the values of head 2, as with grouped queries."""

    @classmethod
    def weights(cls, fused: torch.Tensor, heads: int) -> Weights:
        query, key, value = split_weight(fused)
        by_head = value.unflatten(0, (heads, -1))
        by_head[3] = by_head[2]
        return query, key, value


class OneRowMissing(Layout):
    """The last row of Q is zero: a copy that stopped one short."""

    @classmethod
    def weights(cls, fused: torch.Tensor, heads: int) -> Weights:
        query, key, value = split_weight(fused)
        query[-1] = 0
        return query, key, value


def output_transposed(bridge: Any) -> Any:
    """`out_proj` holds its weight transposed."""
    weight = bridge.blocks[0].attn.o.original_component.weight
    weight.data = weight.data.T.contiguous()
    return bridge


def output_heads_reordered(bridge: Any) -> Any:
    """`out_proj` reads the heads of z in another order."""
    weight = bridge.blocks[0].attn.o.original_component.weight
    heads = bridge.cfg.n_heads
    weight.data = weight.data.unflatten(1, (heads, -1)).roll(1, 1).flatten(1)
    return bridge


_PROJECTIONS = ("attn", "attn.q", "attn.k", "attn.v", "block")
_OUTPUT = ("attn", "attn.o", "block")

FAULTS = (
    fault(QueryKeySwapped, "project_q", "project_k", kinds=_PROJECTIONS),
    fault(QueryKeyValueOrder, "project_k", "project_v", kinds=_PROJECTIONS),
    fault(QueryValueSwapped, "project_q", "project_v", kinds=_PROJECTIONS),
    fault(ValueKeyQueryOrder, "project_q", "project_k", "project_v", kinds=_PROJECTIONS),
    fault(KeyValueQueryOrder, "project_q", "project_k", "project_v", kinds=_PROJECTIONS),
    fault(OnePartition, "project_q", "project_k", "project_v", kinds=_PROJECTIONS),
    fault(TwoPartitions, "project_q", "project_k", "project_v", kinds=_PROJECTIONS),
    fault(EightPartitions, "project_q", "project_k", "project_v", kinds=_PROJECTIONS),
    fault(OneHeadsRowsSwapped, "project_k", kinds=_PROJECTIONS),
    fault(LastPartitionSwapped, "project_q", "project_k", kinds=_PROJECTIONS),
    fault(HeadsInterleaved, "project_q", "project_k", "project_v", kinds=_PROJECTIONS),
    fault(ValueHeadRepeated, "project_v", kinds=_PROJECTIONS),
    fault(OneRowMissing, "project_q", kinds=_PROJECTIONS),
    fault(output_transposed, "output", kinds=_OUTPUT),
    fault(output_heads_reordered, "output", kinds=_OUTPUT),
)
