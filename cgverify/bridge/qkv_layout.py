"""The layout of CodeGen's fused QKV weight: split into Q, K and V, and joined again.

`qkv_proj.weight` has shape `[3 * d_model, d_model]`. CodeGen was trained on four tensor-parallel cores, and
its rows are still in that order: four partitions of `3 * d_model / 4` rows, and inside each partition
the queries, then the *values*, then the keys of a quarter of the heads. With d_model = 8 and 4 heads of
size 2, the 24 rows are

    Q0 Q0 V0 V0 K0 K0 | Q1 Q1 V1 V1 K1 K1 | Q2 Q2 V2 V2 K2 K2 | Q3 Q3 V3 V3 K3 K3

Source: `CodeGenAttention.forward` in transformers, where `mp_num = 4` is a literal.
"""

from __future__ import annotations

import torch
from torch import Tensor

PARTITIONS = 4
"""`mp_num`: the number of tensor-parallel partitions in every CodeGen checkpoint."""


def split_weight(fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Copy the Q, K and V weights, each contiguous and `[d_model, d_model]`, out of a fused `[3 * d_model, d_model]`.

    Row `h * d_head + i` of each is dimension i of head h. Raises ValueError for any other shape.
    """
    rows, d_model = fused.shape
    if rows != 3 * d_model or d_model % PARTITIONS != 0:
        raise ValueError(
            f"a fused QKV weight has shape [3 * d_model, d_model] with d_model a multiple of {PARTITIONS}, "
            f"not {list(fused.shape)}."
        )
    parts = fused.reshape(PARTITIONS, 3, d_model // PARTITIONS, d_model)
    query, value, key = (parts[:, i].reshape(d_model, d_model).contiguous() for i in range(3))
    return query, key, value


def join_weight(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the fused weight `[3 * d_model, d_model]` of three weights `[d_model, d_model]`: `split_weight`'s inverse.

    Only rows are moved, so this also joins three gradients into the gradient of the fused weight.
    """
    return join_features(query.mT, key.mT, value.mT).mT.contiguous()


def join_features(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return what the fused projection returns, `[…, 3 * d_model]`, from three projections `[…, d_model]`."""
    blocks = [projection.unflatten(-1, (PARTITIONS, -1)) for projection in (query, value, key)]
    return torch.stack(blocks, dim=-2).flatten(-3)


def split_features(fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the contiguous projections q, k and v, `[…, d_model]`, of a fused one: `join_features`'s inverse."""
    query, value, key = fused.unflatten(-1, (PARTITIONS, 3, -1)).unbind(-2)
    return query.flatten(-2), key.flatten(-2), value.flatten(-2)
