"""Precision that is lower than the dtype's; nothing else is wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from cgverify.selftest.candidates import Rows, by_name, named_faults
from cgverify.selftest.seeded.seeding import attention, computed, reweighted, through_bfloat16

TF32_BITS = 13
"""Bits of a float32 mantissa that TF32 drops."""

_Q, _K, _V, _O = (f"blocks.0.attn.{name}" for name in "qkvo")


def tf32(x: Tensor) -> Tensor:
    """Round a float32 to TF32, which has 13 bits less; return tensors of other dtypes unchanged."""
    if x.dtype != torch.float32:
        return x
    half, kept = 1 << (TF32_BITS - 1), -(1 << TF32_BITS)
    return x.view(torch.int32).add(half).bitwise_and(kept).view(torch.float32)


def tf32_operands(module: nn.Linear, x: Tensor) -> Tensor:
    """Compute a Linear of TF32 operands."""
    return linear(tf32(x), tf32(module.weight), module.bias)


def _rounded_result(module: nn.Linear, x: Tensor) -> Tensor:
    return through_bfloat16(nn.Linear.forward(module, x))


def _rounded_input(module: nn.Linear, x: Tensor) -> Tensor:
    return nn.Linear.forward(module, through_bfloat16(x))


def _rounded_halves(module: nn.Linear, x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    parts = [linear(x[..., s], module.weight[:, s]) for s in (slice(half), slice(half, None))]
    total = through_bfloat16(parts[0]) + through_bfloat16(parts[1])
    return total if module.bias is None else total + module.bias


_QUERY: Rows = {
    "projections_in_tf32": ("The operands of Q, K and V are rounded to TF32.", computed(tf32_operands, _Q, _K, _V)),
    "QueryWeightsInBfloat16": ("The weight of Q is rounded to bfloat16.", reweighted(_Q, through_bfloat16)),
}
_PROJECTIONS: Rows = {
    "projections_in_bfloat16": ("q, k and v are rounded to bfloat16.", computed(_rounded_result, _Q, _K, _V)),
    "projections_of_rounded_input": (
        "q, k and v are computed from hidden states that are rounded to bfloat16.",
        computed(_rounded_input, _Q, _K, _V),
    ),
}
_OUTPUT_WEIGHTS: Rows = {
    "output_in_tf32": ("The operands of `out_proj` are rounded to TF32.", computed(tf32_operands, _O)),
    "output_accumulated_in_bfloat16": (
        "`out_proj` adds two halves that are rounded to bfloat16.",
        computed(_rounded_halves, _O),
    ),
    "OutputWeightsInFloat16": (
        "The weight of `out_proj` is wrong by as much as float16 would round it.",
        reweighted(_O, lambda weight: weight * (1 + 2.0**-12)),
    ),
}
_MIXES: Rows = {
    "MixInBfloat16": (
        "Pattern and values are rounded to bfloat16 before they are mixed.",
        attention(_mix=lambda _, mix, pattern, value: mix(through_bfloat16(pattern), through_bfloat16(value))),
    ),
    "MixInTF32": (
        "Pattern and values are rounded to TF32 before they are mixed.",
        attention(_mix=lambda _, mix, pattern, value: mix(tf32(pattern), tf32(value))),
    ),
}
_SCORES: Rows = {
    "ScoresInTF32": (
        "q and k are rounded to TF32.",
        attention(_scores=lambda _, scores, q, k, mask: scores(tf32(q.float()), tf32(k.float()), mask)),
    ),
}
_OUTPUTS: Rows = {
    "OutputInBfloat16": (
        "The output is rounded to bfloat16.",
        attention(_output=lambda _, output, z: through_bfloat16(output(z))),
    ),
    "OutputInFloat32": (
        "The output is float32 in models of 16 bits.",
        attention(_output=lambda _, output, z: output(z).to(torch.promote_types(z.dtype, torch.float32))),
    ),
}
_OUTPUT_KINDS = ("attn", "attn.o", "block")

FAULTS = (
    *named_faults(__name__, _QUERY, "project_q", kinds=("attn", "attn.q", "block")),
    *named_faults(
        __name__,
        _PROJECTIONS,
        *("project_q", "project_k", "project_v"),
        kinds=("attn", "attn.q", "attn.k", "attn.v", "block"),
    ),
    *named_faults(__name__, _OUTPUT_WEIGHTS, "output", kinds=_OUTPUT_KINDS),
    *named_faults(__name__, _MIXES, "mix"),
    *named_faults(__name__, _SCORES, "scores"),
    *named_faults(__name__, _OUTPUTS, "output"),
)
__getattr__ = by_name(FAULTS)
