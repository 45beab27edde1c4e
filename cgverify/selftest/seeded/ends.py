"""Wrong embeddings and unembeddings, through functions of a booted bridge."""

from __future__ import annotations

from typing import Any

import torch

from cgverify.checkpoint.resolve import resolve
from cgverify.selftest.entry import fault
from cgverify.selftest.seeded.precision import through


def _changed(component: Any, change: Any) -> None:
    weight = component.original_component.weight
    weight.data = change(weight.data)


def embedding_shifted(bridge: Any) -> Any:
    """Each token has the row of the one before it."""
    _changed(bridge.embed, lambda weight: weight.roll(1, 0))
    return bridge


def embedding_scaled(bridge: Any) -> Any:
    """Rows are scaled by √d_model, as in the first Transformer."""
    _changed(bridge.embed, lambda weight: weight * weight.shape[1] ** 0.5)
    return bridge


def embedding_in_bfloat16(bridge: Any) -> Any:
    """The table has been through bfloat16."""
    _changed(bridge.embed, lambda weight: through(weight, torch.bfloat16))
    return bridge


def last_token_missing(bridge: Any) -> Any:
    """The last token has no row of its own but zeros."""
    bridge.embed.original_component.weight.data[-1] = 0
    return bridge


def first_token_padding(bridge: Any) -> Any:
    """Token 0 is taken for padding."""
    bridge.embed.original_component.weight.data[0] = 0
    return bridge


def unembedding_in_bfloat16(bridge: Any) -> Any:
    """The weight has been through bfloat16."""
    _changed(bridge.unembed, lambda weight: through(weight, torch.bfloat16))
    return bridge


def unembedding_tied(bridge: Any) -> Any:
    """The embedding's table serves as the unembedding's weight, which CodeGen does not tie."""
    _changed(
        bridge.unembed,
        lambda weight: resolve("codegen-nano").read("transformer.wte.weight", weight.shape).to(weight),
    )
    return bridge


def unembedding_transposed(bridge: Any) -> Any:
    """The weight is read as `[d_model, vocabulary]`."""
    _changed(bridge.unembed, lambda weight: weight.T.contiguous().view(weight.shape))
    return bridge


def unembedding_shifted(bridge: Any) -> Any:
    """Each token has the logits of the one before it."""
    _changed(bridge.unembed, lambda weight: weight.roll(1, 0))
    return bridge


def unembedding_bias_missing(bridge: Any) -> Any:
    """The logits have no bias."""
    bridge.unembed.original_component.bias = None
    return bridge


def logits_scaled(bridge: Any) -> Any:
    """Logits are scaled by 1/√d_model, as where embeddings are tied."""
    _changed(bridge.unembed, lambda weight: weight * weight.shape[1] ** -0.5)
    return bridge


def logits_capped(bridge: Any) -> Any:
    """Logits go through 30·tanh(x/30)."""
    linear = bridge.unembed.original_component
    linear.register_forward_hook(lambda _, __, logits: 30 * torch.tanh(logits / 30))
    return bridge


FAULTS = (
    *(
        fault(candidate, "embedding", kinds=("embed",))
        for candidate in (embedding_shifted, embedding_scaled, embedding_in_bfloat16)
    ),
    fault(last_token_missing, "embedding", kinds=("embed",), case="stress"),
    fault(first_token_padding, "embedding", kinds=("embed",), case="stress"),
    *(
        fault(candidate, "unembed", kinds=("unembed",))
        for candidate in (
            *(unembedding_in_bfloat16, unembedding_tied, unembedding_transposed, unembedding_shifted),
            *(unembedding_bias_missing, logits_scaled, logits_capped),
        )
    ),
)
